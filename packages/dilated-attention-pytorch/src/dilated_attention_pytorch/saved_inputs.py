"""Inputs that a backward reads, and where it needs copies of them."""

from __future__ import annotations

import torch
from torch import Tensor


def will_be_saved(*tensors: Tensor | None) -> bool:
    """Whether a backward will read the inputs of a call with these differentiable ones."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def savable(x: Tensor, is_saved: bool) -> Tensor:
    """The tensor, or a copy that autograd can save where it was made in inference mode."""
    return x.clone() if is_saved and not torch.compiler.is_compiling() and x.is_inference() else x


def unchanged(x: Tensor, is_saved: bool) -> Tensor:
    """A tensor without a gradient, or a copy where it is saved: a buffer that is refilled must not change the gradient."""
    return x.clone() if is_saved else x
