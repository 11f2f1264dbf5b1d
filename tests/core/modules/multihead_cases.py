"""Pairs of nn.MultiheadAttention and BlockSparseMultiheadAttention with the same weights, and what both compute."""

from __future__ import annotations

import copy
import importlib
import sys
import types
import unittest
from typing import Any

import torch
from torch import Tensor, nn

from dilated_attention_pytorch import BlockSparseMultiheadAttention, convert_to_block_sparse

EXACT: dict[str, float] = {"atol": 1e-12, "rtol": 1e-12}  # float64: two orders of summation of a few products


def pair(*arguments: Any, sparsity_ratio: float = 1.0, **options: Any) -> tuple[nn.Module, nn.Module]:
    """PyTorch's module and ours in float64, with the same weights."""
    dense = nn.MultiheadAttention(*arguments, **options).double()
    for name, parameter in dense.named_parameters():
        if name.endswith("bias"):  # they begin at zero
            nn.init.normal_(parameter, std=0.5)
    sparse = BlockSparseMultiheadAttention(
        *arguments, **options, sparsity_ratio=sparsity_ratio, block_size=16
    ).double()
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


def converted(model: nn.Module, **settings: Any) -> nn.Module:
    """A copy of the model with our modules, at ratio 1 if nothing else is said."""
    return convert_to_block_sparse(copy.deepcopy(model), **{"sparsity_ratio": 1.0, **settings})


def noise_like(x: Tensor, seed: int = 1) -> Tensor:
    """The same numbers for tensors of the same shape, whatever their strides."""
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


def results(module: nn.Module, tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor | None]:
    """Outputs, and the gradients of the floating point tensors and the parameters."""
    given = {
        name: x.detach().clone().requires_grad_() if x.is_floating_point() else x
        for name, x in tensors.items()
    }
    module.zero_grad()
    out, weights = module(**given, **options)
    loss = (out * noise_like(out)).sum()
    if weights is not None:
        loss = loss + (weights * noise_like(weights, 2)).sum()
    loss.backward()
    found: dict[str, Tensor | None] = {
        "out": out.detach(),
        "weights": None if weights is None else weights.detach(),
    }
    found |= {f"gradient of {name}": x.grad for name, x in given.items() if x.requires_grad}
    return found | {f"gradient of {name}": x.grad for name, x in module.named_parameters()}


def assert_same(
    found: dict[str, Tensor | None], expected: dict[str, Tensor | None], **tolerance: float
) -> None:
    """No gradient is as good as zeros."""
    assert found.keys() == expected.keys()
    for name in found:
        x, y = found[name], expected[name]
        if x is None or y is None:
            other = y if x is None else x
            assert other is None or (name.startswith("gradient") and not other.any()), name
        else:
            torch.testing.assert_close(
                x, y, **(tolerance or EXACT), msg=lambda text, name=name: f"{name}: {text}"
            )


def inputs_of_torch(name: str, training: bool = True) -> list[Any]:
    """The inputs with which PyTorch tests a module of torch.nn, in float64."""
    try:
        importlib.import_module("expecttest")
    except ImportError:  # PyTorch's test utilities import it, the inputs need nothing of it
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in
    database = importlib.import_module("torch.testing._internal.common_modules").module_db
    (info,) = (each for each in database if each.module_cls is getattr(nn, name))
    return list(
        info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
        )
    )
