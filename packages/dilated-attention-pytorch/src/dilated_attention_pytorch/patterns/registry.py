"""Pattern name -> active (rows, columns)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from .budget import Budget, available_per_row, ratio_budget
from .dilated_sparse import dilated_sparse
from .global_local import global_budget, global_local
from .grid import BlockGrid
from .local_window import local_window

Pattern = Callable[[SparsePatternConfig, BlockGrid, torch.device], tuple[Tensor, Tensor]]

PATTERNS: dict[str, Pattern] = {
    "dilated_sparse": dilated_sparse,
    "local_window": local_window,
    "global_local": global_local,
}


def active_pairs(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of one config, int64 on `device`, in no particular order."""
    return PATTERNS[config.pattern_type](config, grid, device)


def budget_of(config: SparsePatternConfig, grid: BlockGrid) -> Budget | None:
    """How many blocks the rows keep; None where a window decides."""
    if config.window_size is not None:
        return None
    return (
        global_budget(config, grid) if config.pattern_type == "global_local" else ratio_budget(config, grid)
    )


@functools.lru_cache(maxsize=1024)
def warn_of_lonely_rows(config: SparsePatternConfig) -> None:
    """Once per config: rows that see their own block only are reached by nothing, however many layers there are."""
    warnings.warn(
        f"with sparsity_ratio {config.sparsity_ratio} and min_blocks {config.min_blocks} some rows keep their own block "
        "only, so through this pattern nothing reaches them from elsewhere, however many layers there are; leave "
        "min_blocks out, or raise min_blocks or sparsity_ratio",
        stacklevel=4,
    )


def check_connected(config: SparsePatternConfig, grid: BlockGrid) -> None:
    """Warn if a row keeps its own block only, though there are others."""
    if config.min_blocks != 1 or config.pattern_type == "global_local":
        return  # more blocks, or a global one
    budget = budget_of(config, grid)
    if budget is not None and bool(((budget.blocks() == 1) & (available_per_row(grid) > 1)).any()):
        warn_of_lonely_rows(config)
