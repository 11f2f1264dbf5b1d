"""BlockIndices: the columns of the active blocks of every row, as a user gives them to `BlockLayout.from_indices`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..grid import BlockGrid
from ..values import shown

INDEX_TYPES = (torch.int32, torch.int64)
SHAPE = "(batch or 1, heads or 1, n_rows, k)"


class BlockIndices(NamedTuple):
    """Checked arguments of `BlockLayout.from_indices`."""

    indices: Tensor
    """int32 or int64 (batch, heads, n_rows, k), contiguous."""
    counts: Tensor | None
    """int32 or int64 (batch, heads, n_rows), contiguous."""
    grid: BlockGrid

    @property
    def heads(self) -> int:
        """Of all batch elements."""
        return self.indices.shape[0] * self.indices.shape[1]

    @property
    def n_lists(self) -> int:
        """Row lists."""
        return self.heads * self.grid.n_rows


def check_index_tensor(name: str, value: Any, shape: str) -> None:
    """Raise unless an argument is a dense tensor of int32 or int64."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be an int32 or int64 tensor {shape}, got {type(value).__name__}; use torch.as_tensor({name})"
        )
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested tensor" if value.is_nested else f"{value.layout} on {value.device}"
        raise ValueError(f"{name} must be a dense tensor {shape}, got {kind}")
    if value.dtype not in INDEX_TYPES:
        raise ValueError(f"{name} must be int32 or int64, got {value.dtype}; use {name}.long()")


def checked_indices(indices: Any, counts: Any, grid: BlockGrid) -> BlockIndices:
    """The arguments with all their axes; TypeError or ValueError name the one that does not fit."""
    check_index_tensor("indices", indices, SHAPE)
    if not 2 <= indices.dim() <= 4:
        raise ValueError(f"indices must be {SHAPE}, or have fewer leading axes, got {shown(indices)}")
    if indices.shape[-2] != grid.n_rows or 0 in indices.shape[:-1]:
        raise ValueError(
            f"indices must be {SHAPE} with n_rows {grid.n_rows}, for q_len {grid.q_len}, kv_len {grid.kv_len} and "
            f"block_size {grid.block_size} with causal={grid.causal}, got shape {tuple(indices.shape)}"
        )
    if indices.numel() >= 2**31:
        raise ValueError(
            f"indices must have at most 2**31 - 1 elements, got {indices.numel()}; use a larger block_size or fewer blocks a row"
        )
    full = indices[(None,) * (4 - indices.dim())].contiguous()
    if counts is None:
        return BlockIndices(full, None, grid)
    check_index_tensor("counts", counts, "(batch or 1, heads or 1, n_rows)")
    if counts.device != indices.device:
        raise ValueError(f"counts must be on {indices.device} as indices, got {counts.device}")
    of_rows = full.shape[:3]
    fits = counts.dim() <= 3 and all(
        mine in (1, theirs) for mine, theirs in zip(reversed(counts.shape), reversed(of_rows), strict=False)
    )
    if not fits:
        raise ValueError(
            f"counts must broadcast to the rows of indices {tuple(of_rows)}, got shape {tuple(counts.shape)}"
        )
    return BlockIndices(full, counts.expand(of_rows).contiguous(), grid)
