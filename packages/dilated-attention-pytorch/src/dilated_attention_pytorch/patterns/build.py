"""Pattern name -> active (rows, columns)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from .dilated_sparse import dilated_sparse
from .global_local import global_local
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
