"""What a profile lists: the operators by name, whether a call is eager, cached or compiled; without a profiler, nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    _torch_internals,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
    block_sparse_sdpa,
)

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)
LENGTH = 96
LAYOUT = BlockLayout.from_config(CONFIG, LENGTH)
CAUSAL = BlockLayout.from_config(CONFIG, LENGTH, causal=True)
OFFSETS = torch.tensor([0, 40, LENGTH], dtype=torch.int32)
LENGTHS = torch.tensor([LENGTH], dtype=torch.int32)
FORWARD, BACKWARD, DECODE = (
    f"dilated_attention_pytorch::{name}" for name in ("attention", "attention_backward", "decode")
)

ADAPTIVE = BlockSparseAdaptive(CONFIG, num_heads=2, head_dim=8)
MULTIHEAD = BlockSparseMultiheadAttention(16, 2, batch_first=True, sparse_config=CONFIG)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": lambda x: block_sparse_attention(x, x, x, LAYOUT),
    "with_options": lambda x: block_sparse_attention(x, x, x, LAYOUT, softcap=5.0),
    "module": lambda x: BlockSparseAttention(CONFIG)(x, x, x),
    "multihead": lambda x: MULTIHEAD(x.flatten(2), x.flatten(2), x.flatten(2))[0],
    "adaptive": lambda x: ADAPTIVE(x, x, x, is_causal=True),
    "packed": lambda x: block_sparse_attention_varlen(x[0], x[0], x[0], LAYOUT, OFFSETS, OFFSETS, 56, 56),
    "sdpa": lambda x: block_sparse_sdpa(*[x.transpose(1, 2)] * 3, sparse_config=CONFIG),
}


def listed(use: Callable[[], object]) -> dict[str, int]:
    """How often a profile has each of our names."""
    with profile(activities=[ProfilerActivity.CPU]) as made:
        use()
    return {event.key: event.count for event in made.key_averages() if event.key.startswith("dilated")}


def step(call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    call(x).sum().backward()


@pytest.mark.parametrize("name", CALLS)
def test_first_and_cached_calls_have_the_names_of_the_operators(name: str) -> None:
    x = torch.randn(1, LENGTH, 2, 8, requires_grad=True)
    for _ in range(2):
        assert listed(lambda: step(CALLS[name], x)) == {FORWARD: 1, BACKWARD: 1}
    with torch.no_grad():
        for _ in range(2):
            assert listed(lambda: CALLS[name](x)) == {FORWARD: 1}


@pytest.mark.parametrize("name", ["function", "module"])
def test_compiled_calls_have_the_same_names(name: str) -> None:
    torch.compiler.reset()
    module = BlockSparseAttention(CONFIG)
    call = CALLS[name] if name == "function" else lambda x: module(x, x, x)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, LENGTH, 2, 8, requires_grad=True)
    step(compiled, x)
    assert listed(lambda: step(compiled, x)) == {FORWARD: 1, BACKWARD: 1}


def test_steps_of_decoding_have_a_name() -> None:
    q, cache = torch.randn(1, 1, 2, 8), torch.randn(1, LENGTH, 2, 8)
    for _ in range(2):
        assert listed(lambda: block_sparse_decode(q, cache, cache, CAUSAL, LENGTHS)) == {DECODE: 1}


def test_kernels_of_a_call_stand_inside_its_range() -> None:
    x = torch.randn(1, LENGTH, 2, 8)
    CALLS["function"](x)
    with profile(activities=[ProfilerActivity.CPU]) as made:
        CALLS["function"](x)
    (ours,) = (event for event in made.events() if event.name == FORWARD)
    assert [event for event in made.events() if event.name.startswith("aten::")]
    for event in made.events():
        if event.name.startswith("aten::"):
            assert ours.time_range.start <= event.time_range.start
            assert event.time_range.end <= ours.time_range.end


def test_without_a_profiler_no_range_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(torch.profiler, "record_function", fail)
    assert not _torch_internals.profiler_flags._is_profiler_enabled
    x = torch.randn(1, LENGTH, 2, 8, requires_grad=True)
    for name in CALLS:
        step(CALLS[name], x)
        step(CALLS[name], x)


def test_flag_follows_every_kind_of_profiler() -> None:
    for kind in (
        profile(activities=[ProfilerActivity.CPU]),
        torch.autograd.profiler.profile(),
    ):
        with kind:
            assert _torch_internals.profiler_flags._is_profiler_enabled
        assert not _torch_internals.profiler_flags._is_profiler_enabled
