"""Decoding on a GPU: equal to the definition, one CUDA graph for all steps, no step waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_decode
from dilated_attention_pytorch.backends.triton import decode_launch
from tests.core.decode_cases import (
    RANDOM_CASES,
    RandomCase,
    cache_of,
    int32,
    last_queries,
    layout_of,
    paged,
    sequence,
    table_of,
)

pytestmark = pytest.mark.gpu
HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 64


def large(n_tokens: int, batch: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[Any, ...]:
    """q of one step, caches and a layout of 32 heads of 128 on 8."""
    config = SparsePatternConfig(block_size=options.get("block", BLOCK), sparsity_ratio=0.1)
    layout = BlockLayout.from_config(config, n_tokens, causal=True, device="cuda")
    q = torch.randn(batch, options.get("q_len", 1), HEADS, DIM, device="cuda", dtype=dtype)
    k, v = (torch.randn(batch, n_tokens, KV_HEADS, DIM, device="cuda", dtype=dtype) for _ in range(2))
    return q, k, v, layout


@pytest.mark.parametrize("page_size", [None, 16, 64, 256])
@pytest.mark.parametrize("q_len", [1, 5, 16])
@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_long_caches_give_the_rows_of_the_definition(
    dtype: torch.dtype, block: int, q_len: int, page_size: int | None
) -> None:
    q, k, v, layout = large(8192, 3, dtype, block=block, q_len=q_len)
    lengths = int32(8192, 4097, 3).cuda()
    expected = block_sparse_decode(q, k, v, layout, lengths, return_lse=True, backend="reference")
    table = None
    if page_size is not None:
        table = table_of(3, 8192 // page_size).cuda()
        k, v = (paged(cache_of(x.cpu(), lengths.cpu(), 8192), page_size).cuda() for x in (k, v))
    out, lse = block_sparse_decode(q, k, v, layout, lengths, table, return_lse=True)
    # weights that sum to 1 times values below 6, each rounded once, and the result
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected[0], rtol=0.0, atol=max(1e-5, 7 * eps))
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(case=RANDOM_CASES)
def test_decoding_at_random_lengths_gives_the_rows_of_the_full_forward(case: RandomCase) -> None:
    out, expected = case.rows("cuda")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("q_len", [1, 7])
def test_masks_and_scores_give_the_rows_of_the_definition(q_len: int, block: int, heads: int) -> None:
    whole = sequence(layout_of(1000, heads, block, with_masks=True))
    lengths = int32(1000, 517, 0)
    scores = {"softcap": 2.0, "alibi_slopes": torch.rand(4), "sinks": torch.rand(4)}
    expected = last_queries(whole.rows(**scores)[0], lengths, q_len)
    k, v = (cache_of(x, lengths, 1000).cuda() for x in (whole.k, whole.v))
    on_device = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in scores.items()}
    out = block_sparse_decode(
        last_queries(whole.q, lengths, q_len).cuda(),
        k,
        v,
        whole.layout.to("cuda"),
        lengths.cuda(),
        **on_device,
    )
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page_size", [None, 16, 64])
def test_one_graph_replays_a_thousand_steps_without_waiting(page_size: int | None) -> None:
    n_steps = 1000
    _, k, v, layout = large(n_steps + 100, 2)
    table = None
    if page_size is not None:
        n_pages = -(-k.shape[1] // page_size)
        table = table_of(2, n_pages).cuda()
        k, v = (paged(x.cpu(), page_size).cuda() for x in (k, v))
    queries = torch.randn(n_steps, 2, 1, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    q, lengths = queries[0].clone(), int32(3, 90).cuda()
    outs = torch.empty_like(queries)
    first = lengths.clone()

    def step() -> Tensor:
        lengths.add_(1)
        return block_sparse_decode(q, k, v, layout, lengths, table)

    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    lengths.copy_(first)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(n_steps):
            q.copy_(queries[i])
            graph.replay()
            outs[i].copy_(out)
        lengths.copy_(first)
        eager = []
        for i in range(n_steps):
            q.copy_(queries[i])
            eager.append(step())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(outs, torch.stack(eager))
    for i in (0, 59, 60, 61, 500, 999):  # also at the edges of blocks
        expected = block_sparse_decode(queries[i], k, v, layout, first + i + 1, table, backend="reference")
        torch.testing.assert_close(outs[i], expected, rtol=0.0, atol=7 * torch.finfo(torch.bfloat16).eps)


def test_a_repeated_call_goes_straight_to_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    if not decode_launch.HAS_RAW_LAUNCH:
        pytest.skip("the launcher of this triton is not known")
    q, k, v, layout = large(4096, 2)
    lengths = int32(4096, 77).cuda()
    expected = block_sparse_decode(q, k, v, layout, lengths)
    assert len(layout.calls) == 1

    def fail(*arguments: Any) -> None:
        raise AssertionError("resolved again")

    monkeypatch.setattr(decode_launch, "launch_decode", fail)
    assert torch.equal(block_sparse_decode(q, k, v, layout, lengths), expected)
    shifted = torch.empty(3, device="cuda", dtype=torch.int32)[1:]
    shifted.copy_(lengths)
    with pytest.raises(AssertionError, match="resolved again"):  # not at a multiple of 16 bytes
        block_sparse_decode(q, k, v, layout, shifted)
    monkeypatch.undo()
    assert torch.equal(block_sparse_decode(q, k, v, layout, shifted), expected)


def test_a_growing_cache_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if not decode_launch.HAS_RAW_LAUNCH:
        pytest.skip("the launcher of this triton is not known")
    q, k, v, layout = large(4096, 2)
    # (batch, heads, length, head_dim), as in transformers.
    k, v = (x.transpose(1, 2).contiguous() for x in (k, v))

    def step(length: int) -> Tensor:
        caches = (x[:, :, :length].contiguous().transpose(1, 2) for x in (k, v))
        return block_sparse_decode(q, *caches, layout, int32(length, length - 50).cuda())

    expected = [step(length) for length in (1000, 1001, 1024, 3000)]
    assert len(layout.calls) == 1
    monkeypatch.setattr(decode_launch, "launch_decode", None)
    for length, out in zip((1000, 1001, 1024, 3000), expected, strict=True):
        assert torch.equal(step(length), out)
        whole = block_sparse_decode(
            q,
            k.transpose(1, 2),
            v.transpose(1, 2),
            layout,
            int32(length, length - 50).cuda(),
            backend="reference",
        )
        torch.testing.assert_close(out, whole, rtol=0.0, atol=7 * torch.finfo(torch.bfloat16).eps)


def test_two_runs_give_equal_bits() -> None:
    q, k, v, layout = large(32768, 4)
    lengths = int32(32768, 20000, 777, 1).cuda()
    first = block_sparse_decode(q, k, v, layout, lengths)
    assert all(torch.equal(block_sparse_decode(q, k, v, layout, lengths), first) for _ in range(20))


def test_caches_beyond_two_to_the_31_elements_are_read_where_they_are() -> None:
    q, k, v, layout = large(262144, 9)  # 9 * 2**28 elements
    lengths = torch.full((9,), 262144, device="cuda", dtype=torch.int32)
    out = block_sparse_decode(q, k, v, layout, lengths)
    alone = block_sparse_decode(q[8:], k[8:].clone(), v[8:].clone(), layout, lengths[8:])
    torch.testing.assert_close(out[8:], alone, rtol=0.0, atol=7 * torch.finfo(torch.bfloat16).eps)


def test_lengths_and_pages_out_of_range_read_nothing_outside_the_cache() -> None:
    q, k, v, layout = large(4096, 2)
    for lengths in (int32(5000, -7), int32(2**31 - 1, 4097)):
        assert block_sparse_decode(q, k, v, layout, lengths.cuda()).isfinite().all()
    table = torch.full((2, 64), 10**9, device="cuda", dtype=torch.int32)
    pages = (x.unflatten(1, (64, 64)).flatten(0, 1) for x in (k, v))
    assert block_sparse_decode(q, *pages, layout, int32(4096, 100).cuda(), table).isfinite().all()
    torch.cuda.synchronize()
