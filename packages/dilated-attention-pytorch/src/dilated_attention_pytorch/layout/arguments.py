"""Checks of what the methods of BlockLayout are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import values


def check_block_mask(mask: Any) -> None:
    """Raise unless `mask` is a non-empty bool tensor (n_rows, n_cols), with an axis of heads and one of batch elements before."""
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"mask must be a bool tensor, got {type(mask).__name__}; use torch.as_tensor(mask, dtype=torch.bool)"
        )
    if mask.is_nested or mask.dim() not in (2, 3, 4) or mask.dtype != torch.bool or mask.numel() == 0:
        raise ValueError(
            f"mask must be bool with shape (n_rows, n_cols), (heads, n_rows, n_cols) or (batch, heads, n_rows, n_cols), "
            f"each at least 1, got {'a nested tensor' if mask.is_nested else f'{mask.dtype} {tuple(mask.shape)}'}"
        )
    if mask.layout != torch.strided or mask.is_meta:
        raise ValueError(
            f"mask must be a dense tensor with values, got {mask.layout} on {mask.device}; use mask.to_dense()"
        )


def checked_device(device: Any) -> torch.device:
    """The device, default the CPU; ValueError for one whose tensors hold no values."""
    target = values.device(device)
    if target.type == "meta":
        raise ValueError(
            "device must hold values, got 'meta'; make the layout on the CPU and move it with .to()"
        )
    return target


def check_index(name: str, given: Any, number: int) -> int:
    """The index of a head or batch element; ValueError if the layout has no such one, TypeError if it is no int."""
    found = values.integer(given)
    if found is None or not 0 <= found < number:
        raise values.wrong(found, f"{name} must be 0 to {number - 1}, got {values.shown(given)}")
    return found
