"""The arguments of a module are attributes: what is assigned later is checked, and holds from the next call on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
)
from tests.core.backward_spy import backwards
from tests.core.op_recorder import OpRecorder

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.3)


def qkv() -> list[Tensor]:
    return [torch.randn(1, 100, 2, 16) for _ in range(3)]


CHANGES: dict[str, dict[str, Any]] = {
    "sparse_config": {"sparse_config": SparsePatternConfig(block_size=16, sparsity_ratio=1.0)},
    "block_size": {"sparse_config": SparsePatternConfig(block_size=32, sparsity_ratio=0.5)},
    "per_head": {"sparse_config": [CONFIG, SparsePatternConfig("local_window", 16, 0.5)]},
    "dilation": {"segment_lengths": [16, 32], "dilation_rates": [1, 4]},
    "dilation_the_other_way_round": {"dilation_rates": [1, 4], "segment_lengths": [16, 32]},
    "softmax_scale": {"softmax_scale": 0.7},
    "backend": {"backend": "reference"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_assigned_settings_hold_from_the_next_call_on(name: str) -> None:
    module, tensors = BlockSparseAttention(CONFIG), qkv()
    module(*tensors)
    for setting, value in CHANGES[name].items():
        setattr(module, setting, value)
    made_so = BlockSparseAttention(**{"sparse_config": CONFIG, **CHANGES[name]})
    assert torch.equal(module(*tensors), made_so(*tensors))
    assert repr(module) == repr(made_so)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(*tensors), made_so(*tensors))
        assert repr(other) == repr(module)


def test_assigned_dropout_is_drawn() -> None:
    module, tensors = BlockSparseAttention(CONFIG), qkv()
    first = module(*tensors)
    module.dropout = 0.5
    assert not torch.equal(module(*tensors), first)
    assert torch.equal(module.eval()(*tensors), first)


def test_assigned_backend_is_the_one_that_runs() -> None:
    module = BlockSparseAttention(CONFIG)
    module.backend = "hopper"
    with pytest.raises(ValueError, match="backend='hopper' cannot serve"):
        module(*qkv())


def test_assigned_settings_reach_a_compiled_module() -> None:
    torch.compiler.reset()
    module, tensors = BlockSparseAttention(CONFIG), qkv()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(*tensors)
    for setting, value in (
        ("sparse_config", SparsePatternConfig(block_size=16, sparsity_ratio=1.0)),
        ("softmax_scale", 0.5),
        ("segment_lengths", (16,)),
    ):
        if setting == "segment_lengths":
            module.dilation_rates = (4,)
        setattr(module, setting, value)
        torch.testing.assert_close(compiled(*tensors), module(*tensors))


WRONG: dict[str, tuple[str, Any, type[Exception], str]] = {
    "config": ("sparse_config", 0.1, TypeError, "sparse_config must be"),
    "empty_config": ("sparse_config", [], ValueError, "sparse_config must be"),
    "segments": ("segment_lengths", [20], ValueError, "segment_lengths must be multiples of block_size 16"),
    "order": ("segment_lengths", [32, 16], ValueError, "segment_lengths must be ascending"),
    "text": ("segment_lengths", "16", TypeError, "segment_lengths must be a list"),
    "rates": ("dilation_rates", [3], ValueError, "dilation_rates must divide block_size 16"),
    "dropout": ("dropout", 1.5, ValueError, r"dropout must be in \[0, 1\)"),
    "dropout_text": ("dropout", "0.1", TypeError, "dropout must be a number"),
    "scale": ("softmax_scale", float("nan"), ValueError, "softmax_scale must be finite"),
    "backend": ("backend", "tritn", ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_when_assigned_and_leave_the_old_ones(name: str) -> None:
    module = BlockSparseAttention(CONFIG)
    before = repr(module)
    setting, value, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        setattr(module, setting, value)
    assert repr(module) == before


def test_dilation_that_does_not_fit_together_is_refused_by_the_call() -> None:
    module = BlockSparseAttention(CONFIG, [16], [2])
    module.segment_lengths = [16, 32]
    with pytest.raises(ValueError, match="must have the same length"):
        module(*qkv())
    module.dilation_rates = [2, 4]
    expected = BlockSparseAttention(CONFIG, [16, 32], [2, 4])
    tensors = qkv()
    assert torch.equal(module(*tensors), expected(*tensors))


def test_block_size_that_the_segments_do_not_fit_is_refused() -> None:
    module = BlockSparseAttention(CONFIG, [16], [2])
    with pytest.raises(ValueError, match="segment_lengths must be multiples of block_size 64"):
        module.sparse_config = SparsePatternConfig(block_size=64)


def test_settings_cannot_be_changed_in_place() -> None:
    configs, segments, rates = [CONFIG, CONFIG], [16, 32], [1, 2]
    module = BlockSparseAttention(configs, segments, rates)
    before = repr(module)
    configs.pop()
    segments[0] = 999
    rates.append(3)
    assert repr(module) == before
    for value in (module.sparse_config, module.segment_lengths, module.dilation_rates):
        assert isinstance(value, tuple)


def test_pickle_of_0_3_0_is_read() -> None:
    module = BlockSparseAttention.__new__(BlockSparseAttention)
    torch.nn.Module.__init__(module)
    state = dict(module.__dict__)
    state |= {
        "sparse_config": CONFIG, "segment_lengths": [16, 32], "dilation_rates": [1, 2], "_dilation": None, "dropout": 0.0,
        "softmax_scale": 0.5, "backend": None, "_layouts": {},
    }  # fmt: skip
    module.__setstate__(state)
    expected, tensors = BlockSparseAttention(CONFIG, [16, 32], [1, 2], softmax_scale=0.5), qkv()
    assert repr(module) == repr(expected)
    assert torch.equal(module(*tensors), expected(*tensors))


def test_one_rate_of_one_is_no_dilation() -> None:
    tensors = qkv()
    found = BlockSparseAttention(CONFIG, [2048], [1])
    assert torch.equal(found(*tensors), BlockSparseAttention(CONFIG)(*tensors))
    assert found.segment_lengths == (2048,)


# ---- what surrounds a call


MASKS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = {
    "kv_lengths": (lambda: torch.tensor([60], dtype=torch.int32), lambda x: x.fill_(20)),
    "kv_lengths_int64": (lambda: torch.tensor([60]), lambda x: x.fill_(20)),
    "key_padding_mask": (lambda: torch.zeros(1, 100, dtype=torch.bool), lambda x: x[:, 30:].fill_(True)),
}


def attend_eagerly(module: BlockSparseAttention, tensors: list[Tensor], **mask: Tensor) -> Tensor:
    out: Tensor = module(*tensors, **mask)
    return out


def attend_through_the_operator(
    module: BlockSparseAttention, tensors: list[Tensor], **mask: Tensor
) -> Tensor:
    with OpRecorder():
        return attend_eagerly(module, tensors, **mask)


def attend_compiled(module: BlockSparseAttention, tensors: list[Tensor], **mask: Tensor) -> Tensor:
    torch.compiler.reset()
    out: Tensor = torch.compile(module, fullgraph=True, backend="aot_eager")(*tensors, **mask)
    return out


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("attend", [attend_eagerly, attend_through_the_operator, attend_compiled])
def test_mask_refilled_before_the_backward_does_not_change_the_gradient(
    attend: Callable[..., Tensor], name: str
) -> None:
    module = BlockSparseAttention(CONFIG)
    tensors = [x.requires_grad_() for x in qkv()]
    make, change = MASKS[name]
    argument = name.removesuffix("_int64")
    expected = torch.autograd.grad(
        attend_eagerly(module, tensors, **{argument: make()}).square().sum(), tensors
    )
    mask = make()
    loss = attend(module, tensors, **{argument: mask}).square().sum()
    change(mask)
    for ours, theirs in zip(torch.autograd.grad(loss, tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_deterministic_reaches_the_backward_of_every_call() -> None:
    module = BlockSparseAttention(CONFIG, deterministic=False)
    q, k, v = (x.requires_grad_() for x in qkv())
    with backwards() as seen:
        for value in (False, False, True):
            module.deterministic = value
            module(q, k, v).sum().backward()
    assert seen == [False, False, True]
    with pytest.raises(TypeError, match="deterministic must be True, False or None, got 'no'"):
        module.deterministic = "no"  # type: ignore[assignment]


@pytest.mark.parametrize(
    "make",
    [
        lambda: BlockSparseAttention(CONFIG),
        lambda: BlockSparseAdaptive(block_size=16),
        lambda: BlockSparseMultiheadAttention(32, 2),
    ],
)
def test_modules_say_that_they_cannot_be_scripted(make: Callable[[], torch.nn.Module]) -> None:
    module = make()
    message = (
        f"^{type(module).__name__} cannot be scripted by torch.jit.script; use torch.compile or torch.export$"
    )
    with pytest.raises(RuntimeError, match=message):
        torch.jit.script(torch.nn.Sequential(module))
