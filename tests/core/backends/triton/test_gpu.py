"""What a call may ask for beside a plain batch, on a GPU: beside the definition in float64, in graphs, without compiling anew."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.layout.lists import BlockMasks, packed_masks
from dilated_attention_pytorch.sequences import packed_sequences, sequences_of_batch
from dilated_attention_pytorch.varlen import block_sparse_attention_varlen
from tests.core.attention_cases import LIMITS
from tests.core.backends.triton.test_drawn_problems import check

pytestmark = pytest.mark.gpu

TOKENS, BATCH, HEADS, KV_HEADS = 1000, 3, 4, 2


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def packed(p: AttentionProblem) -> dict[str, Any]:
    """Three sequences in one element, one of them empty, and tokens behind them."""
    ends = int32(0, 130, 130, 700, 900)
    sequences = packed_sequences(ends, int32(0, 200, 256, 800, 990), 570, 600, p.is_causal)
    return {"sequences": sequences, "q": p.q[:1], "k": p.k[:1], "v": p.v[:1]}


def padded(p: AttentionProblem) -> dict[str, Any]:
    starts, ends = int32(0, 77, 300), int32(1000, 990, 640)
    return {"sequences": sequences_of_batch(p.q, TOKENS, p.is_causal, None, ends, starts)[1]}


def moved(p: AttentionProblem) -> dict[str, Any]:
    """The last queries of a cache that is not full, at positions that only the device knows."""
    lengths = int32(1000, 500, 130)
    q = p.q[:, :100]
    return {"q": q, "sequences": sequences_of_batch(q, TOKENS, p.is_causal, lengths - 100, lengths)[1]}


def masked(p: AttentionProblem) -> dict[str, Any]:
    """Three masks, in two of five blocks."""
    side, n = p.block_size, p.rows.indices.numel()
    ids = torch.arange(n, device="cuda", dtype=torch.int32) % 5 - 2
    masks = torch.rand(3, side, side, device="cuda") < 0.5
    return {"block_masks": BlockMasks(ids.clamp(min=-1), packed_masks(masks))}


def biased(p: AttentionProblem) -> dict[str, Any]:
    bias = normal(BATCH, HEADS, p.rows.indices.numel())
    bias[:, 1, ::7] = -math.inf
    return {"block_bias": bias.to(p.q.dtype)}


def with_attn_bias(p: AttentionProblem) -> dict[str, Any]:
    bias = normal(1, HEADS, TOKENS, TOKENS, dtype=p.q.dtype)
    return {"attn_bias": bias.masked_fill(bias > 1.0, -math.inf).transpose(2, 3)}


FEATURES: dict[str, Callable[[AttentionProblem], dict[str, Any]]] = {
    "packed": packed,
    "padded": padded,
    "moved": moved,
    "masked": masked,
    "softcap": lambda p: {"softcap": 3.0},
    "alibi_sinks": lambda p: {
        "alibi_slopes": torch.rand(HEADS, device="cuda"), "sinks": normal(HEADS, dtype=p.q.dtype),
    },
    "attn_bias": with_attn_bias,
    "padded_masked_bias": lambda p: padded(p) | masked(p) | biased(p),
    "packed_all": lambda p: packed(p) | masked(p) | {
        "softcap": 3.0, "alibi_slopes": torch.rand(HEADS, device="cuda"), "sinks": normal(HEADS, dtype=p.q.dtype),
        "dropout_p": 0.2, "seed": torch.tensor([5], device="cuda"),
        "block_bias": normal(4, 1, p.rows.indices.numel(), dtype=p.q.dtype),
    },
}  # fmt: skip
BOTH_SIZES = [(128, 64), (64, 128)]  # head_dim, block_size


def problem_of(
    name: str, head_dim: int, block_size: int, dtype: torch.dtype, causal: bool, **options: Any
) -> AttentionProblem:
    layout = BlockLayout.from_config(
        SparsePatternConfig("dilated_sparse", block_size, 0.5), 1200, causal=causal, device="cuda"
    )
    q, k, v = (normal(BATCH, TOKENS, heads, head_dim, dtype=dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    plain = make_problem(q, k, v, layout, is_causal=causal, **options)
    return dataclasses.replace(plain, **FEATURES[name](plain))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("head_dim", "block_size"), BOTH_SIZES)
@pytest.mark.parametrize("name", FEATURES)
def test_bfloat16_is_close_to_the_definition(name: str, head_dim: int, block_size: int, causal: bool) -> None:
    p = problem_of(name, head_dim, block_size, torch.bfloat16, causal)
    check(p, seed=0, limit=LIMITS[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ["packed_all", "padded_masked_bias", "softcap"])
def test_other_types_are_close_to_the_definition(name: str, dtype: torch.dtype) -> None:
    check(problem_of(name, 80, 32, dtype, True), seed=1, limit=LIMITS[dtype])


@pytest.mark.parametrize("name", ["packed_all", "padded_masked_bias"])
def test_token_dilation_is_close_to_the_definition(name: str) -> None:
    options = {"segment_lengths": [128, 256], "dilation_rates": [1, 4]}
    p = problem_of(name, 64, 64, torch.bfloat16, True, **options)
    check(p, seed=0, limit=LIMITS[torch.bfloat16])


@functools.lru_cache(maxsize=1)
def long_layout() -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(), 4096, causal=True, device="cuda")


def packed_step(ends: Tensor, tokens: int, longest: int) -> tuple[Tensor, ...]:
    """A step of training on packed sequences: out, and the gradients of q, k and v."""
    q, k, v = (normal(tokens, heads, 64, dtype=torch.bfloat16).requires_grad_() for heads in (4, 2, 2))
    out = block_sparse_attention_varlen(
        q, k, v, long_layout(), ends, ends, longest, longest, is_causal=True, backend="triton"
    )
    return out.detach(), *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))


def test_other_lengths_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    packed_step(int32(0, 96, 512), 512, 416)
    compiled: list[str] = []

    def hook(*args: Any, repr: str = "", **kwargs: Any) -> None:
        compiled.append(repr)

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
    for tokens, longest in ((1024, 704), (777, 777), (1003, 16), (50, 1), (4096, 4096)):
        packed_step(int32(0, min(longest, tokens), tokens), tokens, longest)
    torch.cuda.synchronize()
    assert compiled == []


def test_packed_step_does_not_synchronise_with_the_host() -> None:
    ends = int32(0, 300, 1000)
    packed_step(ends, 1024, 700)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed_step(ends, 1024, 700)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replays_packed_sequences_of_other_lengths() -> None:
    q, k, v = (normal(1024, heads, 64, dtype=torch.bfloat16).requires_grad_() for heads in (4, 2, 2))
    layout, ends, others = long_layout(), int32(0, 300, 1000), int32(0, 40, 1024)

    def step(cu_seqlens: Tensor) -> tuple[Tensor, ...]:
        out = block_sparse_attention_varlen(
            q, k, v, layout, cu_seqlens, cu_seqlens, 1024, 1024, is_causal=True, backend="triton"
        )
        return out.detach(), *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(ends)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(ends)
    ends.copy_(others)
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step(others), strict=True):
        assert torch.equal(found, expected)


def test_results_of_a_plain_batch_are_those_of_its_packed_sequences() -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(), 1000, causal=True, device="cuda")
    q, k, v = (normal(3, 1000, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
    whole = block_sparse_attention(q, k, v, layout, is_causal=True, backend="triton")
    ends = int32(0, 1000, 2000, 3000)
    flat = block_sparse_attention_varlen(
        *(x.flatten(0, 1) for x in (q, k, v)),
        layout,
        ends,
        ends,
        1000,
        1000,
        is_causal=True,
        backend="triton",
    )
    torch.testing.assert_close(flat.view_as(whole), whole, rtol=1e-2, atol=1e-2)
