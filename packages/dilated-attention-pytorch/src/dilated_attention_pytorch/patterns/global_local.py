"""global_local: the first blocks attend to all and are attended to by all; the other rows add their nearest blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from .budget import Budget, available_per_row, ratio_budget
from .intervals import expand, nearest
from .local_window import window_interval
from .registry import register


def count_global(config: SparsePatternConfig, grid: BlockGrid) -> int:
    """Number of global blocks: `global_tokens` rounded up to blocks, at least one."""
    return min(max(1, -(-config.global_tokens // grid.block_size)), grid.n_cols)


def global_budget(config: SparsePatternConfig, grid: BlockGrid) -> Budget:
    """Blocks per budget row, including global rows and columns.

    Causal rows follow the running total, so that they do not depend on the length. Otherwise the blocks that the
    global rows leave are spread evenly over the other rows: with the running total, the rows right after the global
    ones would get none.
    """
    n_rows, n_global = grid.n_budget_rows, count_global(config, grid)
    rows = torch.arange(n_rows, device="cpu")
    square = BlockGrid(grid.kv_len, grid.kv_len, grid.block_size, True) if grid.causal else grid
    diagonal = square.diagonal(torch.device("cpu"))
    of_ratio = ratio_budget(config, grid)
    others = torch.where(diagonal >= n_global, n_global + 1, n_global)
    least = torch.where(rows < n_global, available_per_row(grid), torch.maximum(others, of_ratio.least))
    if grid.causal or n_global >= n_rows:
        return Budget(least, of_ratio.share)
    n_in_global, n_local = n_global * grid.n_cols, n_rows - n_global
    left = max(int(of_ratio.totals()[-1]) - n_in_global, 0)
    share = left * torch.arange(1, n_local + 1, device="cpu") // n_local
    return Budget(least, torch.cat([least[:n_global].cumsum(0), n_in_global + share]))


@register("global_local", budget=global_budget)
def global_local(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern, int64 (n_active,) each."""
    n_global = count_global(config, grid)
    rows = torch.arange(grid.n_rows, device=device)
    diagonal = grid.diagonal(device)
    last = diagonal if grid.causal else torch.full_like(diagonal, grid.n_cols - 1)
    is_global = rows + grid.first_row < n_global
    global_length = torch.where(is_global, last + 1, n_global).clamp(min=0)
    if config.window_size is not None:
        start, length = window_interval(config.window_size, diagonal, grid, lowest=n_global)
    else:
        count = grid.visible_rows(global_budget(config, grid).blocks()).to(device) - n_global
        start, length = nearest(diagonal.clamp(min=n_global), count.clamp(min=0), n_global, last)
    length = torch.where(is_global, 0, length)
    return expand(
        rows.repeat(2), torch.cat([torch.zeros_like(start), start]), torch.cat([global_length, length])
    )
