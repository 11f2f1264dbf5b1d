"""local_window: the nearest blocks of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from .budget import ratio_budget
from .intervals import expand, nearest
from .registry import register


def window_interval(
    window_size: int, diagonal: Tensor, grid: BlockGrid, lowest: int = 0
) -> tuple[Tensor, Tensor]:
    """Start and length of each row's interval of columns for a window in tokens, rounded up to blocks.

    Causal: `window_size` past tokens besides the diagonal block. Otherwise half of them on each side.
    """
    radius = -(-window_size // (grid.block_size if grid.causal else 2 * grid.block_size))
    start = (diagonal - radius).clamp(min=lowest)
    stop = (diagonal if grid.causal else diagonal + radius).clamp(max=grid.n_cols - 1) + 1
    return start, (stop - start).clamp(min=0)


@register("local_window")
def local_window(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern, int64 (n_active,) each."""
    diagonal = grid.diagonal(device)
    if config.window_size is not None:
        start, length = window_interval(config.window_size, diagonal, grid)
    else:
        count = grid.visible_rows(ratio_budget(config, grid).blocks()).to(device)
        start, length = nearest(diagonal, count, 0, diagonal if grid.causal else grid.n_cols - 1)
    return expand(torch.arange(grid.n_rows, device=device), start, length)
