"""Repeated calls with options give what the same calls give when they are checked, from the values of their own tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    _torch_internals,
    block_sparse_attention,
    block_sparse_attention_varlen,
    functional,
    varlen,
)
from dilated_attention_pytorch.eager_options import OptionsCall
from tests.core.backward_spy import backwards

pytestmark = pytest.mark.interpreter

LENGTH = 40
CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)


def layout(causal: bool = True) -> BlockLayout:
    return BlockLayout.from_config(CONFIG, LENGTH, causal=causal)


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def batch(requires_grad: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, LENGTH, 2, 16, dtype=dtype).requires_grad_(requires_grad) for _ in range(3)]


def packed(requires_grad: bool = False) -> list[Tensor]:
    return [torch.randn(60, 2, 16).requires_grad_(requires_grad) for _ in range(3)]


def padding(*lengths: int) -> Tensor:
    return torch.arange(LENGTH)[None] >= int32(*lengths)[:, None]


Options = dict[str, Any]
BLOCKS = layout().num_active_blocks
# For every kind of call two sets of values.
BATCHES: dict[str, tuple[Options, Options]] = {
    "lengths": ({"kv_lengths": int32(40, 17)}, {"kv_lengths": int32(3, 29)}),
    "lengths of int64": ({"kv_lengths": torch.tensor([40, 17])}, {"kv_lengths": torch.tensor([3, 29])}),
    "starts": ({"kv_starts": int32(0, 17)}, {"kv_starts": int32(12, 29)}),
    "starts, lengths and offsets": (
        {"kv_starts": int32(0, 3), "kv_lengths": int32(30, 20), "q_offset": int32(0, 0)},
        {"kv_starts": int32(2, 9), "kv_lengths": int32(40, 33), "q_offset": int32(-2, -9)},
    ),
    "padding": ({"key_padding_mask": padding(40, 7)}, {"key_padding_mask": padding(23, 40)}),
    "padding and lengths": (
        {"key_padding_mask": padding(40, 7), "kv_lengths": int32(40, 20)},
        {"key_padding_mask": padding(23, 40), "kv_lengths": int32(9, 31)},
    ),
    "softcap": ({"softcap": 2.0}, {"softcap": 2.0}),
    "sinks and slopes": (
        {"sinks": torch.tensor([1.0, -1.0]), "alibi_slopes": torch.tensor([0.5, 0.25])},
        {"sinks": torch.tensor([0.0, 3.0]), "alibi_slopes": torch.tensor([0.1, 1.0])},
    ),
    "bias and lengths": (
        {"block_bias": torch.linspace(-1, 1, BLOCKS), "kv_lengths": int32(40, 17)},
        {"block_bias": torch.linspace(1, -2, BLOCKS), "kv_lengths": int32(3, 29)},
    ),
    "bias per head": (
        {"block_bias": torch.linspace(-1, 1, 2 * BLOCKS).view(2, BLOCKS)},
        {"block_bias": torch.linspace(1, -2, 2 * BLOCKS).view(2, BLOCKS)},
    ),
}  # fmt: skip
BOUNDS = (int32(0, 40, 60), int32(0, 25, 60))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU take the way of those of a GPU; kernels run in the interpreter."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> list[str]:
    """A word for every call that was checked."""
    seen: list[str] = []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def check(*args: Any, **kwargs: Any) -> Any:
            seen.append("checked")
            return real(*args, **kwargs)

        return check

    monkeypatch.setattr(functional, "check_call", noting(functional.check_call))
    monkeypatch.setattr(varlen, "check_packed_call", noting(varlen.check_packed_call))
    return seen


def same(found: Any, wanted: Any) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


# ---- the same numbers


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_second_batch_is_not_checked_and_uses_its_own_values(
    name: str, requires_grad: bool, checks: list[str]
) -> None:
    its_layout = layout()
    for i in range(3):
        tensors, options = batch(requires_grad), BATCHES[name][i % 2]
        found = block_sparse_attention(*tensors, its_layout, is_causal=True, return_lse=True, **options)
        n_checks = len(checks)
        wanted = block_sparse_attention(*tensors, layout(), is_causal=True, return_lse=True, **options)
        assert len(checks) == n_checks + 1  # of another layout nothing is kept
        same(found, wanted)
        if requires_grad:
            grads = [torch.autograd.grad(out.square().sum(), tensors) for out, _ in (found, wanted)]
            same(*grads)
    assert checks == ["checked"] * (1 + 3)


@pytest.mark.parametrize("is_packed", [False, True])
def test_calls_that_are_not_deterministic_are_kept_apart_from_others(
    is_packed: bool, checks: list[str]
) -> None:
    its_layout, tensors = layout(), packed(True) if is_packed else batch(True)
    with backwards() as seen:
        for value in (False, None, False, True, None):
            options: Options = {"is_causal": True, "deterministic": value}
            if is_packed:
                out = block_sparse_attention_varlen(*tensors, its_layout, *BOUNDS, 40, 40, **options)
            else:
                out = block_sparse_attention(*tensors, its_layout, kv_lengths=int32(40, 17), **options)
            out.sum().backward()
    assert seen == [False, True, False, True, True]
    assert checks == ["checked"] * 2


@pytest.mark.parametrize("requires_grad", [False, True])
def test_second_pack_is_not_checked_and_uses_its_own_values(requires_grad: bool, checks: list[str]) -> None:
    its_layout = layout()
    for i in range(3):
        tensors, bounds = packed(requires_grad), BOUNDS[i % 2]
        args = (bounds, bounds, 40, 40)
        found = block_sparse_attention_varlen(*tensors, its_layout, *args, is_causal=True, return_lse=True)
        wanted = block_sparse_attention_varlen(*tensors, layout(), *args, is_causal=True, return_lse=True)
        same(found, wanted)
        if requires_grad:
            same(*[torch.autograd.grad(out.square().sum(), tensors) for out, _ in (found, wanted)])
    assert checks == ["checked"] * (1 + 3)


def test_bounds_changed_in_place_are_read_anew(as_on_a_gpu: None) -> None:
    its_layout, tensors, bounds = layout(), packed(), int32(0, 40, 60)
    args = (bounds, bounds, 40, 40)
    for numbers in ((0, 40, 60), (0, 25, 60), (0, 30, 60)):
        bounds.numpy()[:] = numbers  # as a kernel or a CUDA graph does: without a new version of the tensor
        found = block_sparse_attention_varlen(*tensors, its_layout, *args, is_causal=True)
        wanted = block_sparse_attention_varlen(*tensors, layout(), *args, is_causal=True)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["lengths", "padding"])
def test_values_changed_before_the_backward_do_not_change_the_gradient(name: str, as_on_a_gpu: None) -> None:
    its_layout, (first, second) = layout(), BATCHES[name]
    for _ in range(2):
        tensors = batch(requires_grad=True)
        options = {key: x.clone() for key, x in first.items()}
        out = block_sparse_attention(*tensors, its_layout, is_causal=True, **options)
        for key, x in second.items():
            options[key].copy_(x)
        found = torch.autograd.grad(out.square().sum(), tensors)
        fresh = block_sparse_attention(*tensors, layout(), is_causal=True, **first)
        same(found, torch.autograd.grad(fresh.square().sum(), tensors))


def test_module_finds_kept_calls(checks: list[str]) -> None:
    module, options = BlockSparseAttention(CONFIG), {"kv_lengths": int32(40, 17)}
    tensors = batch()
    wanted = module(*tensors, is_causal=True, **options)
    assert torch.equal(module(*tensors, is_causal=True, **options), wanted)
    assert checks == ["checked"]


# ---- which calls are others


DIFFERENT: list[Options] = [
    {"kv_lengths": int32(17, 17)},
    {"kv_starts": int32(17, 17)},
    {"q_offset": int32(17, 17)},
    {"kv_lengths": int32(17, 17), "softmax_scale": 0.25},
    {"kv_lengths": int32(17, 17), "softcap": 2.0},
    {"kv_lengths": int32(17, 17), "q_offset": 0},
    {"kv_lengths": int32(17, 17), "q_offset": -3},
    {"kv_starts": int32(17, 17), "q_offset": -3},
    {"kv_lengths": int32(17, 17), "backend": "cpu"},
    {"kv_lengths": int32(17, 17), "key_padding_mask": padding(5, 5)},
    {"kv_lengths": int32(17, 17), "alibi_slopes": torch.tensor([0.5, 0.25])},
    {"kv_lengths": int32(17, 17), "sinks": torch.tensor([0.5, 0.25])},
    {"kv_lengths": int32(17, 17), "segment_lengths": [16, 32], "dilation_rates": [1, 2]},
    {"kv_lengths": torch.stack([int32(17, 17), int32(3, 3)], 1)[:, 0]},
]


def test_options_do_not_share_a_kept_call(as_on_a_gpu: None) -> None:
    shared, tensors = layout(), batch()
    for options in [*DIFFERENT, *reversed(DIFFERENT)]:
        found = block_sparse_attention(*tensors, shared, is_causal=True, **options)
        wanted = block_sparse_attention(*tensors, layout(), is_causal=True, **options)
        assert torch.equal(found, wanted), options


def test_calls_that_cannot_be_kept_are_checked_every_time(
    checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    its_layout, lengths = layout(), int32(17, 17)
    cases: list[Options] = [
        {"attn_bias": torch.zeros(2, 1, 1, LENGTH)},
        {"dropout_p": 0.5},
        {"softmax_scale": 1},
        {"segment_lengths": [16], "dilation_rates": [1]},
    ]
    for options in cases:
        for _ in range(2):
            block_sparse_attention(*batch(), its_layout, is_causal=True, kv_lengths=lengths, **options)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for _ in range(2):
        block_sparse_attention(*batch(), its_layout, is_causal=True, kv_lengths=lengths)
    assert checks == ["checked"] * 2 * (len(cases) + 1)
    assert not any(isinstance(x, OptionsCall) for x in its_layout.calls.values())


def test_values_on_the_cpu_are_checked_every_time() -> None:
    its_layout, tensors = layout(), batch()
    for _ in range(2):
        block_sparse_attention(*tensors, its_layout, is_causal=True, kv_lengths=int32(40, 17))
    with pytest.raises(ValueError, match="kv_lengths must be 0 to kv_len"):
        block_sparse_attention(*tensors, its_layout, is_causal=True, kv_lengths=int32(40, 41))


WRONG: dict[str, tuple[Options, type[Exception], str]] = {
    "shape": ({"kv_lengths": int32(1, 2, 3)}, ValueError, "kv_lengths must be int with shape"),
    "type": ({"kv_lengths": torch.tensor([1.0, 2.0])}, ValueError, "kv_lengths must be int with shape"),
    "no tensor": ({"kv_lengths": [1, 2]}, TypeError, "kv_lengths must be a tensor"),
    "mask": ({"key_padding_mask": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "key_padding_mask must"),
    "mask of integers": ({"key_padding_mask": padding(1, 2).int()}, ValueError, "key_padding_mask must"),
    "backend": ({"backend": "hopper"}, ValueError, "cannot serve this call"),
    "offset": ({"q_offset": 7}, ValueError, "queries at 7 to 46"),
    "causality": ({"is_causal": False}, ValueError, "is_causal=False needs a layout"),
    "flag": ({"return_lse": 2}, (ValueError, TypeError), "return_lse"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_batches_are_refused_after_a_success(name: str, as_on_a_gpu: None) -> None:
    its_layout, tensors = layout(), batch()
    right: Options = {"kv_lengths": int32(40, 17), "key_padding_mask": padding(40, 7), "is_causal": True}
    wrong, error, message = WRONG[name]
    for _ in range(2):
        block_sparse_attention(*tensors, its_layout, **right)
        with pytest.raises(error, match=message):
            block_sparse_attention(*tensors, its_layout, **(right | wrong))


def test_wrong_packs_are_refused_after_a_success(as_on_a_gpu: None) -> None:
    its_layout, (q, k, v), bounds = layout(), packed(), int32(0, 40, 60)
    for _ in range(2):
        block_sparse_attention_varlen(q, k, v, its_layout, bounds, bounds, 40, 40, is_causal=True)
        with pytest.raises(ValueError, match="max_seqlen_q must be at least"):
            block_sparse_attention_varlen(q, k, v, its_layout, bounds, bounds, 39, 40, is_causal=True)
        with pytest.raises(ValueError, match="must have one shape"):
            block_sparse_attention_varlen(q, k, v, its_layout, bounds, int32(0, 60), 40, 60, is_causal=True)
        with pytest.raises(ValueError, match="cu_seqlens_q must be int32"):
            block_sparse_attention_varlen(q, k, v, its_layout, bounds.long(), bounds, 40, 40, is_causal=True)
        with pytest.raises(TypeError, match="max_seqlen_q must be an int"):
            block_sparse_attention_varlen(q, k, v, its_layout, bounds, bounds, 40.0, 40, is_causal=True)  # type: ignore[call-overload]


# ---- what is kept


def test_kept_call_holds_no_tensor_of_a_call(as_on_a_gpu: None) -> None:
    its_layout, options = layout(), BATCHES["padding and lengths"][0]
    block_sparse_attention(*batch(requires_grad=True), its_layout, is_causal=True, **options)
    (kept,) = its_layout.calls.values()
    problem = kept.static_problem
    assert (problem.q, problem.k, problem.v, problem.sequences, problem.key_padding_mask) == (None,) * 5


def test_kept_call_holds_no_tensor_that_changes_scores(as_on_a_gpu: None) -> None:
    its_layout = layout()
    options = {**BATCHES["sinks and slopes"][0], **BATCHES["bias per head"][0]}
    block_sparse_attention(*batch(), its_layout, is_causal=True, **options)
    (kept,) = its_layout.calls.values()
    problem = kept.static_problem
    assert (problem.block_bias, problem.sinks, problem.alibi_slopes) == (None,) * 3


def test_gradients_of_bias_and_sinks_flip_with_every_call(checks: list[str], as_on_a_gpu: None) -> None:
    its_layout, tensors = layout(), batch()
    for name, x in (("sinks", torch.tensor([1.0, -1.0])), ("block_bias", torch.linspace(-1, 1, BLOCKS))):
        for requires_grad in (False, True, False, True):
            leaf = x.clone().requires_grad_(requires_grad)
            out = block_sparse_attention(*tensors, its_layout, is_causal=True, **{name: leaf})
            fresh = block_sparse_attention(*tensors, layout(), is_causal=True, **{name: leaf})
            assert torch.equal(out, fresh)
            assert out.requires_grad == requires_grad
            if requires_grad:
                same(*[torch.autograd.grad(each.square().sum(), leaf) for each in (out, fresh)])
    assert len(checks) == 2 * 2 + 8


def test_slopes_that_require_grad_are_refused_after_a_success(as_on_a_gpu: None) -> None:
    its_layout, slopes = layout(), torch.tensor([0.5, 0.25])
    block_sparse_attention(*batch(), its_layout, is_causal=True, alibi_slopes=slopes)
    with pytest.raises(ValueError, match="alibi_slopes requires grad"):
        block_sparse_attention(
            *batch(), its_layout, is_causal=True, alibi_slopes=slopes.clone().requires_grad_()
        )


def test_call_under_autocast_is_another(as_on_a_gpu: None, checks: list[str]) -> None:
    its_layout, tensors, options = layout(), batch(), BATCHES["lengths"][0]
    for _ in range(2):
        block_sparse_attention(*tensors, its_layout, is_causal=True, **options)
        with torch.autocast("cpu", torch.float16):
            out = block_sparse_attention(*tensors, its_layout, is_causal=True, **options)
        assert out.dtype == torch.float16
    assert checks == ["checked"] * 3  # autocast has work in every call
