"""Inputs that a backward reads, and where it needs copies of them."""

from __future__ import annotations

import torch
from torch import Tensor


def will_be_saved(*tensors: Tensor | None) -> bool:
    """Whether a backward will read the inputs of a call with these differentiable ones."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def savable(x: Tensor | None, is_saved: bool) -> Tensor | None:
    """The tensor, or a copy that autograd can save where it was made in inference mode."""
    if x is None or not is_saved or torch.compiler.is_compiling() or not x.is_inference():
        return x
    return x.clone()


def unchanged(x: Tensor | None, is_saved: bool) -> Tensor | None:
    """A tensor without a gradient, or a copy where it is saved: a buffer that is refilled must not change the gradient."""
    return x.clone() if is_saved and x is not None else x
