"""The CPU backend on padded, packed and chunked sequences: a sequence gets what it gets alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.cpu import CPU
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.sequences import default_offset, packed_sequences, sequences_of_batch

LONGEST, HEADS, KV_HEADS, DIM, BLOCK = 150, 4, 2, 8, 16
CONFIG = SparsePatternConfig(sparsity_ratio=0.3, block_size=BLOCK)
# float32 rounds to 6e-8; values are below 4, and sums over 150 keys in another order lose one more digit
EXACT = {"rtol": 0.0, "atol": 1e-6}

Tensors = tuple[Tensor, Tensor, Tensor]
lengths = st.lists(st.integers(1, LONGEST), min_size=1, max_size=4)


def layout_of(length: int) -> BlockLayout:
    return BlockLayout.from_config(CONFIG, length, causal=True)


COVERING = layout_of(LONGEST)


def problem(tensors: Tensors, layout: BlockLayout, **fields: Any) -> AttentionProblem:
    """A causal problem, by default with the last query at the last key."""
    q, k, v = tensors
    rows, cols = layout.row_lists, layout.col_lists
    return AttentionProblem.made_of(**{
        "q": q, "k": k, "v": v, "grid": layout.grid, "layout_batch": 1, "layout_heads": 1, "rows": rows, "cols": cols,
        "undilated": (rows, cols), "block_masks": None, "prepared": (), "entries": None,
        "q_offset": default_offset(q.shape[1], k.shape[1], True), "is_causal": True, "softmax_scale": 0.4,
        "dropout_p": 0.0, "dilation": None, "block_bias": None, "key_padding_mask": None, "seed": None,
        "sequences": None, "softcap": 0.0, "attn_bias": None, "alibi_slopes": None, "sinks": None, **fields,
    })  # fmt: skip


def prompts_of(seed: int, sizes: Sequence[int]) -> list[Tensors]:
    """q, k and v (1, size, heads, dim) of every prompt."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(1, size, heads, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
        for size in sizes
    ]


def out_and_gradients(made: AttentionProblem) -> tuple[Tensor, ...]:
    """out (which is also its gradient), and the gradients of q, k and v."""
    out, lse = CPU.forward(made)
    return out, *CPU.backward(made, out, lse, out, None)[:3]


def alone(prompt: Tensors) -> tuple[Tensor, ...]:
    return out_and_gradients(problem(prompt, layout_of(prompt[0].shape[1])))


def in_a_batch(prompts: Sequence[Tensors], starts: Sequence[int], length: int) -> Tensors:
    """The prompts in a batch, each from its start on; everything else is NaN."""
    batch = [torch.full((len(prompts), length, *x.shape[2:]), torch.nan) for x in prompts[0]]
    for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        for x, whole in zip(prompt, batch, strict=True):
            whole[i, start : start + x.shape[1]] = x[0]
    return tuple(batch)


def int32(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@settings(max_examples=15, deadline=None)
@given(sizes=lengths, spare=st.integers(0, 20), is_left=st.booleans(), seed=st.integers(0, 99))
def test_a_padded_batch_gives_what_its_prompts_give_alone(
    sizes: list[int], spare: int, is_left: bool, seed: int
) -> None:
    prompts, length = prompts_of(seed, sizes), max(sizes) + spare
    starts = [length - size if is_left else 0 for size in sizes]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    q, k, v = in_a_batch(prompts, starts, length)
    # queries of the padding have positions before the first or after the last key, and are read by nobody
    _, sequences = sequences_of_batch(q, length, True, None, int32(ends), int32(starts))
    assert sequences is not None
    table = sequences.table.clone()
    table[:, 0], table[:, 1], table[:, 4] = int32(starts), int32(sizes), 0
    found = out_and_gradients(problem((q, k, v), COVERING, sequences=sequences._replace(table=table)))
    for i, (prompt, start, end) in enumerate(zip(prompts, starts, ends, strict=True)):
        for x, wanted in zip(found, alone(prompt), strict=True):
            torch.testing.assert_close(x[i, start:end], wanted[0], **EXACT)
            assert not x[i, :start].any()
            assert not x[i, end:].any()


@settings(max_examples=15, deadline=None)
@given(sizes=lengths, seed=st.integers(0, 99))
def test_left_padded_queries_move_with_their_keys(sizes: list[int], seed: int) -> None:
    prompts, length = prompts_of(seed, sizes), max(sizes)
    starts = [length - size for size in sizes]
    q, k, v = in_a_batch(prompts, starts, length)
    q, keys = q.nan_to_num(0.0), int32(starts)
    made = problem((q, k, v), COVERING, sequences=sequences_of_batch(q, length, True, kv_starts=keys)[1])
    found = out_and_gradients(made)
    for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        for x, wanted in zip(found, alone(prompt), strict=True):
            torch.testing.assert_close(x[i, start:], wanted[0], **EXACT)
            assert not x[i, :start].any()


@settings(max_examples=15, deadline=None)
@given(sizes=lengths, behind=st.integers(0, 9), seed=st.integers(0, 99))
def test_packed_prompts_give_what_they_give_alone(sizes: list[int], behind: int, seed: int) -> None:
    prompts = prompts_of(seed, sizes)
    rest = [torch.full((1, behind, *x.shape[2:]), torch.nan) for x in prompts[0]]
    packed = tuple(
        torch.cat([*each, end], 1) for each, end in zip(zip(*prompts, strict=True), rest, strict=True)
    )
    bounds = [0, *itertools.accumulate(sizes)]
    sequences = packed_sequences(int32(bounds), int32(bounds), max(sizes), max(sizes), True)
    found = out_and_gradients(problem(packed, COVERING, sequences=sequences))  # type: ignore[arg-type]
    for prompt, (start, end) in zip(prompts, itertools.pairwise(bounds), strict=True):
        for x, wanted in zip(found, alone(prompt), strict=True):
            torch.testing.assert_close(x[:, start:end], wanted, **EXACT)
    assert all(not x[:, bounds[-1] :].any() for x in found)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, LONGEST), chunk=st.sampled_from([1, 7, 64]), spare=st.integers(0, 20))
def test_a_prefill_in_chunks_gives_the_rows_of_the_prompt(size: int, chunk: int, spare: int) -> None:
    (prompt,) = prompts_of(size, [size])
    wanted = alone(prompt)[0]
    q, k, v = prompt
    cache = [torch.full((1, size + spare, KV_HEADS, DIM), torch.nan) for _ in range(2)]
    for start in range(0, size, chunk):
        stop = min(start + chunk, size)
        cache[0][:, start:stop], cache[1][:, start:stop] = k[:, start:stop], v[:, start:stop]
        made = problem((q[:, start:stop], *cache), COVERING, q_offset=start)  # type: ignore[arg-type]
        out, _ = CPU.forward(made)
        torch.testing.assert_close(out, wanted[:, start:stop], **EXACT)


@settings(max_examples=15, deadline=None)
@given(sizes=lengths, is_left=st.booleans(), seed=st.integers(0, 99))
def test_decoding_gives_the_last_row_of_every_prompt(sizes: list[int], is_left: bool, seed: int) -> None:
    prompts, length = prompts_of(seed, sizes), LONGEST + 10
    starts = [length - size if is_left else 0 for size in sizes]
    _, k, v = in_a_batch(prompts, starts, length)
    q = torch.cat([prompt[0][:, -1:] for prompt in prompts])
    ends = int32([start + size for start, size in zip(starts, sizes, strict=True)])
    positions = int32([size - 1 for size in sizes])
    _, sequences = sequences_of_batch(q, length, True, positions, ends, int32(starts))
    out, _ = CPU.forward(problem((q, k, v), COVERING, sequences=sequences))
    wanted = torch.cat([alone(prompt)[0][:, -1:] for prompt in prompts])
    torch.testing.assert_close(out, wanted, **EXACT)


@pytest.mark.parametrize("position", [-5, LONGEST + 5, 10**9])
def test_a_query_outside_the_layout_sees_nothing(position: int) -> None:
    ((q, k, v),) = prompts_of(0, [LONGEST])
    out, lse = CPU.forward(problem((q[:, :20], k, v), COVERING, q_offset=position, is_causal=False))
    outside = torch.arange(20) + position
    is_outside = (outside < 0) | (outside >= COVERING.grid.n_rows * BLOCK)
    assert not out[:, is_outside].any()
    assert torch.equal(lse == -torch.inf, is_outside.expand_as(lse))
