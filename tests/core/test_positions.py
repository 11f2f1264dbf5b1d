"""One prompt gives the same rows whichever way it is passed: alone, padded, packed, in chunks, or token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)

DRAWN = ["reference", "cpu"]
BACKENDS = [*DRAWN, pytest.param("triton", marks=pytest.mark.interpreter)]
CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.3)
LONGEST = 112
LAYOUT = BlockLayout.from_config(CONFIG, LONGEST, causal=True)
# float32: sums of up to 112 products, in another order
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

Prompt = tuple[Tensor, Tensor, Tensor]


def prompt(length: int) -> Prompt:
    """Four heads, two kv heads."""
    return torch.randn(length, 4, 8), torch.randn(length, 2, 8), torch.randn(length, 2, 12)


def alone(x: Prompt, backend: str) -> Tensor:
    """Its rows with the layout that is made for its length."""
    layout = BlockLayout.from_config(CONFIG, x[0].shape[0], causal=True)
    q, k, v = (each[None] for each in x)
    return block_sparse_attention(q, k, v, layout, is_causal=True, backend=backend)[0]


def padded(prompts: list[Prompt], room: int, on_the_left: bool) -> Prompt:
    """A batch with NaN where no token is."""
    made = []
    for tensors in zip(*prompts, strict=True):
        batch = torch.full((len(prompts), room, *tensors[0].shape[1:]), torch.nan)
        for row, x in zip(batch, tensors, strict=True):
            row[room - len(x) :] = x if on_the_left else row[room - len(x) :]
            row[: len(x)] = row[: len(x)] if on_the_left else x
        made.append(batch)
    return made[0], made[1], made[2]


def int32(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=3)


@pytest.mark.parametrize("backend", DRAWN)
@settings(max_examples=8, deadline=None)
@given(lengths=LENGTHS, spare=st.integers(0, 20), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_padded_on_the_right(backend: str, lengths: list[int], spare: int, dtype: torch.dtype) -> None:
    prompts = [prompt(length) for length in lengths]
    room = min(max(lengths) + spare, LONGEST)
    out = block_sparse_attention(
        *padded(prompts, room, False), LAYOUT, is_causal=True, kv_lengths=torch.tensor(lengths, dtype=dtype),
        backend=backend,
    )  # fmt: skip
    for row, x, length in zip(out, prompts, lengths, strict=True):
        torch.testing.assert_close(row[:length], alone(x, backend), **TOLERANCE)


@pytest.mark.parametrize("backend", DRAWN)
@settings(max_examples=8, deadline=None)
@given(lengths=LENGTHS, spare=st.integers(0, 20))
def test_padded_on_the_left(backend: str, lengths: list[int], spare: int) -> None:
    prompts = [prompt(length) for length in lengths]
    room = max(lengths) + spare
    starts = torch.tensor([room - length for length in lengths])
    out, lse = block_sparse_attention(
        *padded(prompts, room, True),
        LAYOUT,
        is_causal=True,
        kv_starts=starts,
        return_lse=True,
        backend=backend,
    )
    for row, its_lse, x, length in zip(out, lse, prompts, lengths, strict=True):
        torch.testing.assert_close(row[room - length :], alone(x, backend), **TOLERANCE)
        assert not row[: room - length].any()
        assert (its_lse[:, : room - length] == -torch.inf).all()


@pytest.mark.parametrize("backend", DRAWN)
def test_padding_on_the_left_without_causality(backend: str) -> None:
    lengths = [40, 64]
    prompts = [prompt(length) for length in lengths]
    layout = BlockLayout.from_config(CONFIG, 64)
    starts = torch.tensor([24, 0])
    out = block_sparse_attention(*padded(prompts, 64, True), layout, kv_starts=starts, backend=backend)
    for row, x, length in zip(out, prompts, lengths, strict=True):
        q, k, v = (each[None] for each in x)
        wanted = block_sparse_attention(
            q, k, v, layout, kv_lengths=torch.tensor([length]), backend="reference"
        )
        torch.testing.assert_close(row[64 - length :], wanted[0], **TOLERANCE)
        assert not row[: 64 - length].any()


@pytest.mark.parametrize("backend", DRAWN)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, LONGEST), min_size=1, max_size=4).filter(any))
def test_packed_with_others(backend: str, lengths: list[int]) -> None:
    prompts = [prompt(length) for length in lengths]
    q, k, v = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    offsets = int32([0, *torch.tensor(lengths).cumsum(0).tolist()])
    out, lse = block_sparse_attention_varlen(
        q,
        k,
        v,
        LAYOUT,
        offsets,
        offsets,
        max(lengths),
        LONGEST,
        is_causal=True,
        return_lse=True,
        backend=backend,
    )
    assert lse.shape == (4, sum(lengths))
    for rows, x in zip(out.split(lengths), prompts, strict=True):
        if len(rows):
            torch.testing.assert_close(rows, alone(x, backend), **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("backend", DRAWN)
def test_prefilled_in_chunks(backend: str, chunk: int) -> None:
    x = prompt(100)
    q, k, v = (each[None] for each in x)
    outs = []
    for begin in range(0, 100, chunk):
        end = min(begin + chunk, 100)
        outs.append(
            block_sparse_attention(
                q[:, begin:end], k[:, :end], v[:, :end], LAYOUT, is_causal=True, backend=backend
            )
        )
    torch.testing.assert_close(torch.cat(outs, 1)[0], alone(x, backend), **TOLERANCE)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("backend", DRAWN)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(5, LONGEST), min_size=2, max_size=2), queries=st.integers(1, 5))
def test_last_tokens_with_a_cache_longer_than_needed(
    backend: str, as_tensor: bool, lengths: list[int], queries: int
) -> None:
    prompts = [prompt(length) for length in lengths]
    _, k, v = padded(prompts, LONGEST + 9, False)
    for i, (x, length) in enumerate(zip(prompts, lengths, strict=True)):
        q = x[0][None, length - queries :]
        offset: Any = int32([length - queries]) if as_tensor else length - queries
        out = block_sparse_attention(
            q, k[i : i + 1], v[i : i + 1], LAYOUT, is_causal=True, q_offset=offset, kv_lengths=int32([length]),
            backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(out[0], alone(x, backend)[length - queries :], **TOLERANCE)
    # both at once, each at its own position
    q = torch.stack([x[0][length - queries :] for x, length in zip(prompts, lengths, strict=True)])
    written = int32(lengths)
    out = block_sparse_attention(
        q, k, v, LAYOUT, is_causal=True, q_offset=written - queries, kv_lengths=written, backend=backend
    )
    for row, x in zip(out, prompts, strict=True):
        torch.testing.assert_close(row, alone(x, backend)[-queries:], **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_queries_at_the_end_of_their_caches(backend: str) -> None:
    lengths, queries = [40, 9, 112], [3, 1, 20]
    prompts = [prompt(length) for length in lengths]
    q = torch.cat([x[0][-n:] for x, n in zip(prompts, queries, strict=True)])
    k, v = (torch.cat([x[i] for x in prompts]) for i in (1, 2))
    of_q, of_k = int32([0, 3, 4, 24]), int32([0, 40, 49, 161])
    outs = [
        block_sparse_attention_varlen(
            q, k, v, LAYOUT, of_q, of_k, 20, 112, is_causal=True, q_offset=offset, backend=backend
        )
        for offset in (None, torch.tensor([37, 8, 92]))
    ]
    for out in outs:
        for rows, x, n in zip(out.split(queries), prompts, queries, strict=True):
            torch.testing.assert_close(rows, alone(x, backend)[-n:], **TOLERANCE)


@pytest.mark.parametrize("backend", DRAWN)
def test_gradients_are_those_of_each_prompt_alone(backend: str) -> None:
    lengths = [50, 17, 33]
    prompts = [tuple(x.requires_grad_() for x in prompt(length)) for length in lengths]
    wanted = [torch.autograd.grad(alone(x, backend).sin().sum(), x) for x in prompts]  # type: ignore[arg-type]
    leaves = [x for each in prompts for x in each]
    offsets = int32([0, 50, 67, 100])

    def packed() -> Tensor:
        q, k, v = (torch.cat(parts) for parts in zip(*prompts, strict=True))
        return block_sparse_attention_varlen(
            q, k, v, LAYOUT, offsets, offsets, 50, 50, is_causal=True, backend=backend
        )

    def in_a_batch(on_the_left: bool) -> Tensor:
        pads = [(0, 0, 0, 0, 60 - n, 0) if on_the_left else (0, 0, 0, 0, 0, 60 - n) for n in lengths]
        q, k, v = (
            torch.stack([torch.nn.functional.pad(x, pad) for x, pad in zip(parts, pads, strict=True)])
            for parts in zip(*prompts, strict=True)
        )
        ends = torch.tensor(lengths)
        where = {"kv_starts": 60 - ends} if on_the_left else {"kv_lengths": ends}
        out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, backend=backend, **where)
        rows = [row[60 - n :] if on_the_left else row[:n] for row, n in zip(out, lengths, strict=True)]
        return torch.cat(rows)

    for out in (packed(), in_a_batch(True), in_a_batch(False)):
        found = torch.autograd.grad(out.sin().sum(), leaves)
        for ours, theirs in zip(found, [x for each in wanted for x in each], strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shorter_square_calls_take_the_prefix_of_the_layout(backend: str) -> None:
    for length in (1, 16, 50, 111):
        x = prompt(length)
        q, k, v = (each[None] for each in x)
        out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, backend=backend)
        assert torch.equal(out[0], alone(x, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_before_the_first_key_see_nothing(backend: str) -> None:
    q, k, v = (x[None] for x in prompt(60))
    out = block_sparse_attention(q, k[:, :20], v[:, :20], LAYOUT, is_causal=True, backend=backend)
    exact = BlockLayout.from_config(CONFIG, 60, 20, causal=True)
    wanted = block_sparse_attention(q, k[:, :20], v[:, :20], exact, is_causal=True, backend=backend)
    assert not out[:, :40].any()
    torch.testing.assert_close(out, wanted, **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_that_nobody_reads_see_nothing_beyond_the_layout(backend: str) -> None:
    # as on a GPU, a compiled call does not look at them
    layout = BlockLayout.from_config(SparsePatternConfig(block_size=16, sparsity_ratio=1.0), 48)
    q, k, v = (x[None] for x in prompt(64))

    def attend(offset: Tensor) -> Tensor:
        return block_sparse_attention(
            q[:, :10], k, v, layout, q_offset=offset, kv_lengths=torch.tensor([64]), backend=backend
        )

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    wanted = block_sparse_attention(q[:, :8], k[:, :48], v[:, :48], layout, q_offset=40, backend=backend)
    torch.testing.assert_close(compiled(torch.tensor([40]))[:, :8], wanted, **TOLERANCE)
    assert not compiled(torch.tensor([40]))[:, 8:].any()
    for far in (2**31 - 1, -(2**31), 2**40, -(2**40)):
        assert not compiled(torch.tensor([far])).any()


EMPTY = torch.zeros(1, 0, 4, 8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_calls_without_queries_or_keys(backend: str, is_causal: bool) -> None:
    layout = LAYOUT if is_causal else BlockLayout.from_config(CONFIG, LONGEST)
    some = torch.randn(1, 5, 4, 8)
    for q, k in ((EMPTY, some), (some, EMPTY), (EMPTY, EMPTY)):
        leaves = [x.clone().requires_grad_() for x in (q, k, k)]
        of_q, of_k = int32([0, q.shape[1]]), int32([0, k.shape[1]])
        outs = (
            block_sparse_attention(*leaves, layout, is_causal=is_causal, backend=backend),
            block_sparse_attention_varlen(
                *(x[0] for x in leaves), layout, of_q, of_k, 5, 5, is_causal=is_causal, backend=backend
            ),
        )
        for out in outs:
            assert out.shape[-3:] == q.shape[1:]
            assert not out.any()
            assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), leaves))
    none = EMPTY[0]
    out = block_sparse_attention_varlen(
        none, none, none, layout, int32([0]), int32([0]), 0, 0, is_causal=is_causal, backend=backend
    )
    assert out.shape == none.shape


def test_behind_a_layout_that_ends_within_a_block_nothing_is_seen() -> None:
    """Where values are not read, as in compiled code: masks say nothing of positions that the layout does not have."""
    window = BlockLayout.from_mask_mod(lambda b, h, q, k: (q >= k) & (q - k < 30), 100, 100, 64, causal=True)
    q, k, v = torch.randn(2, 10, 2, 16), torch.randn(2, 128, 2, 16), torch.randn(2, 128, 2, 16)
    attend = torch.compile(block_sparse_attention, backend="eager", fullgraph=True)
    offsets, lengths = int32([85, 95]), int32([95, 105])
    for backend in ("reference", "cpu"):
        out, lse = attend(
            q,
            k,
            v,
            window,
            is_causal=True,
            q_offset=offsets,
            kv_lengths=lengths,
            return_lse=True,
            backend=backend,
        )
        inside = block_sparse_attention(
            q[1:, :5], k[1:, :100], v[1:, :100], window, is_causal=True, q_offset=95
        )
        torch.testing.assert_close(out[1:, :5], inside, **TOLERANCE)
        assert not out[1, 5:].any()
        assert (lse[1, :, 5:] == -torch.inf).all()
        assert out[0].any(-1).all()
