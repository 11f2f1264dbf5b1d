"""One prompt, computed in every way that a model may compute it: alone, padded, packed, in chunks, decoded. The rows are equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
)

CONFIG = SparsePatternConfig(sparsity_ratio=0.3, block_size=16)
LONGEST = 160
HEADS, KV_HEADS, DIM = 4, 2, 16
# Also for chunks that end behind a prompt.
LAYOUT = BlockLayout.from_config(CONFIG, LONGEST + 64, causal=True)
# float32 sums of up to 160 products in another order
CLOSE = {"rtol": 0.0, "atol": 1e-5}
Prompt = tuple[Tensor, Tensor, Tensor]

lengths = st.lists(st.integers(1, LONGEST), min_size=1, max_size=4)


def drawn(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def prompts_of(n_tokens: list[int]) -> list[Prompt]:
    """q, k and v (tokens, heads, dim) of prompts of these lengths."""
    generator = torch.Generator().manual_seed(sum(n_tokens))
    return [
        (
            torch.randn(n, HEADS, DIM, generator=generator),
            torch.randn(n, KV_HEADS, DIM, generator=generator),
            torch.randn(n, KV_HEADS, DIM, generator=generator),
        )
        for n in n_tokens
    ]


def alone(prompt: Prompt) -> Tensor:
    """(tokens, heads, dim): the rows of a prompt by the definition, with a layout of its own."""
    q, k, v = (x[None] for x in prompt)
    layout = BlockLayout.from_config(CONFIG, q.shape[1], causal=True)
    return block_sparse_attention(q, k, v, layout, is_causal=True, backend="reference")[0]


def padded(parts: list[Tensor], width: int, on_the_left: bool) -> Tensor:
    """(batch, width, heads, dim): padded with NaN, which nothing may read."""
    made = torch.full((len(parts), width, *parts[0].shape[1:]), torch.nan)
    for row, part in zip(made, parts, strict=True):
        row[slice(width - len(part), None) if on_the_left else slice(len(part))] = part
    return made


def int32(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def test_rows_are_sparse() -> None:
    """Else every way is dense attention, and a shifted grid would change nothing."""
    layout = BlockLayout.from_config(CONFIG, LONGEST, causal=True)
    assert layout.density < 0.6


# ---- a batch


@given(lengths, st.integers(0, 9))
@drawn(15)
def test_padded_on_the_right(n_tokens: list[int], more: int) -> None:
    prompts, width = prompts_of(n_tokens), max(n_tokens) + more
    q, k, v = (padded(list(parts), width, on_the_left=False) for parts in zip(*prompts, strict=True))
    out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, kv_lengths=int32(n_tokens))
    for row, prompt, n in zip(out, prompts, n_tokens, strict=True):
        torch.testing.assert_close(row[:n], alone(prompt), **CLOSE)


@given(lengths, st.integers(0, 9))
@drawn(15)
def test_padded_on_the_left(n_tokens: list[int], more: int) -> None:
    prompts, width = prompts_of(n_tokens), max(n_tokens) + more
    q, k, v = (padded(list(parts), width, on_the_left=True) for parts in zip(*prompts, strict=True))
    starts = int32([width - n for n in n_tokens])
    out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, kv_starts=starts)
    for row, prompt, n in zip(out, prompts, n_tokens, strict=True):
        torch.testing.assert_close(row[width - n :], alone(prompt), **CLOSE)
        assert (row[: width - n] == 0).all()


@given(lengths)
@drawn(15)
def test_packed(n_tokens: list[int]) -> None:
    prompts = prompts_of(n_tokens)
    q, k, v = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    ends = torch.nn.functional.pad(int32(n_tokens).cumsum(0, dtype=torch.int32), (1, 0))
    longest = max(n_tokens)
    out = block_sparse_attention_varlen(q, k, v, LAYOUT, ends, ends, longest, longest, is_causal=True)
    torch.testing.assert_close(out, torch.cat([alone(prompt) for prompt in prompts]), **CLOSE)


# ---- prefill in chunks; small chunks are many calls, so few prompts are drawn


def check_prefilled_in_chunks(chunk: int, n: int) -> None:
    (prompt,) = prompts_of([n])
    q, k, v = (x[None] for x in prompt)
    parts = []
    for start in range(0, n, chunk):
        end = min(n, start + chunk)
        parts.append(
            block_sparse_attention(q[:, start:end], k[:, :end], v[:, :end], LAYOUT, is_causal=True)[0]
        )
    torch.testing.assert_close(torch.cat(parts), alone(prompt), **CLOSE)


def check_prefilled_into_a_static_cache(chunk: int, n_tokens: list[int]) -> None:
    """Prompts of a batch begin one chunk after the other; a slot whose prompt has not begun, or is done, is idle."""
    prompts = prompts_of(n_tokens)
    q, k, v = (padded(list(parts), LONGEST + 64, on_the_left=False) for parts in zip(*prompts, strict=True))
    caches = [torch.full_like(x, torch.nan) for x in (k, v)]
    found: list[list[Tensor]] = [[] for _ in prompts]
    for step in range(max(b + -(-n // chunk) for b, n in enumerate(n_tokens))):
        firsts = [(step - b) * chunk for b in range(len(prompts))]
        is_idle = [first < 0 or first >= n for first, n in zip(firsts, n_tokens, strict=True)]
        firsts = [0 if idle else first for idle, first in zip(is_idle, firsts, strict=True)]
        written = [
            0 if idle else min(n, first + chunk)
            for idle, first, n in zip(is_idle, firsts, n_tokens, strict=True)
        ]
        for cache, x in zip(caches, (k, v), strict=True):
            for b, end in enumerate(written):
                cache[b, :end] = x[b, :end]
        queries = torch.stack([row[first : first + chunk] for row, first in zip(q, firsts, strict=True)])
        out = block_sparse_attention(
            queries, *caches, LAYOUT, is_causal=True, q_offset=int32(firsts), kv_lengths=int32(written)
        )
        for b, (idle, first) in enumerate(zip(is_idle, firsts, strict=True)):
            if idle:
                assert (out[b] == 0).all()
            else:
                found[b].append(out[b, : n_tokens[b] - first])
    for rows, prompt in zip(found, prompts, strict=True):
        torch.testing.assert_close(torch.cat(rows), alone(prompt), **CLOSE)


CHUNKS = pytest.mark.parametrize(("chunk", "n_examples"), [(1, 4), (7, 6), (64, 12)], ids=["1", "7", "64"])


@CHUNKS
def test_prefilled_in_chunks(chunk: int, n_examples: int) -> None:
    drawn(n_examples)(given(st.integers(1, LONGEST))(lambda n: check_prefilled_in_chunks(chunk, n)))()


@CHUNKS
def test_prefilled_in_chunks_into_a_static_cache(chunk: int, n_examples: int) -> None:
    check = given(lengths)(lambda n_tokens: check_prefilled_into_a_static_cache(chunk, n_tokens))
    drawn(n_examples)(check)()


# ---- decoding


def decoded(prompts: list[Prompt], cache_len: int, page: int | None, step: int) -> list[Tensor]:
    """The rows of every prompt, `step` tokens at a time; shorter prompts end before longer ones."""
    batch = len(prompts)
    n_pages = -(-cache_len // page) if page else 0
    shape = (batch * n_pages, page, KV_HEADS, DIM) if page else (batch, cache_len, KV_HEADS, DIM)
    k_cache, v_cache = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    # pages in no order
    table = torch.randperm(batch * n_pages, generator=torch.Generator().manual_seed(0)).int()
    table = table.view(batch, n_pages)
    rows: list[list[Tensor]] = [[] for _ in prompts]
    written = [0] * batch
    for _ in range(-(-max(len(p[0]) for p in prompts) // step)):
        q = torch.zeros(batch, step, HEADS, DIM)
        counts = []
        for b, (of_q, of_k, of_v) in enumerate(prompts):
            # the last step of a prompt may take tokens again, and one that has ended takes its last ones again
            end = min(len(of_q), written[b] + step)
            first = max(0, end - step)
            new = torch.arange(written[b], end)
            for cache, of in ((k_cache, of_k), (v_cache, of_v)):
                if page:
                    cache[table[b, new // page], new % page] = of[new]
                else:
                    cache[b, new] = of[new]
            q[b, step - (end - first) :] = of_q[first:end]
            counts.append(end - written[b])
            written[b] = end
        out = block_sparse_decode(q, k_cache, v_cache, LAYOUT, int32(written), table if page else None)
        for b, count in enumerate(counts):
            rows[b] += list(out[b, step - count :]) if count else []
    return [torch.stack(row) for row in rows]


@pytest.mark.parametrize(
    ("cache_len", "page"),
    [(LONGEST, None), (LONGEST + 57, None), (LONGEST, 16), (LONGEST, 64), (LONGEST + 24, 8)],
    ids=["cache", "longer_cache", "pages", "large_pages", "small_pages"],
)
@given(n_tokens=st.lists(st.integers(1, LONGEST), min_size=1, max_size=3), step=st.sampled_from([1, 3]))
@drawn(4)
def test_decoded(cache_len: int, page: int | None, n_tokens: list[int], step: int) -> None:
    prompts = prompts_of(n_tokens)
    for row, prompt in zip(decoded(prompts, cache_len, page, step), prompts, strict=True):
        torch.testing.assert_close(row, alone(prompt), **CLOSE)
