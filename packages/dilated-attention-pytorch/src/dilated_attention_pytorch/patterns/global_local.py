"""global_local: the first blocks see all and are seen by all; every other row adds its nearest blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from .budget import least_per_row, row_budgets, running_totals, shares
from .grid import BlockGrid
from .intervals import expand, nearest
from .local_window import window_interval


def budgets(config: SparsePatternConfig, grid: BlockGrid, n_global: int) -> Tensor:
    """Blocks per budget row, the global rows and columns counted in.

    Causal rows follow the running total, so they do not depend on the length. Otherwise what the global rows
    leave of the total is spread evenly over the others: paid back at once, it would starve the rows after them.
    """
    n = grid.n_budget_rows
    rows = torch.arange(n, device="cpu")
    square = BlockGrid(grid.kv_len, grid.kv_len, grid.block_size, True) if grid.causal else grid
    diagonal = square.diagonal(torch.device("cpu"))
    everything = rows + 1 if grid.causal else torch.full((n,), grid.n_cols, device="cpu")
    others = torch.where(diagonal >= n_global, n_global + 1, n_global)
    least = torch.maximum(others, least_per_row(config, grid))
    mandatory = torch.where(rows < n_global, everything, least)
    if grid.causal or n_global >= n:
        return row_budgets(config, grid, mandatory)
    total = int(running_totals(shares(config, grid), least_per_row(config, grid))[-1])
    spent, left = n_global * grid.n_cols, n - n_global
    share = (max(total - spent, 0)) * torch.arange(1, left + 1, device="cpu") // left
    totals = running_totals(share, mandatory[n_global:])
    return torch.cat([mandatory[:n_global], totals.diff(prepend=totals.new_zeros(1))])


def global_local(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern."""
    n_global = min(max(1, -(-config.global_tokens // grid.block_size)), grid.n_cols)
    rows = torch.arange(grid.n_rows, device=device)
    diagonal = grid.diagonal(device)
    last = diagonal if grid.causal else torch.full_like(diagonal, grid.n_cols - 1)
    is_global = rows + grid.first_row < n_global
    global_length = torch.where(is_global, last + 1, n_global).clamp(min=0)
    if config.window_size is not None:
        start, length = window_interval(config.window_size, diagonal, grid, lowest=n_global)
    else:
        count = grid.visible_rows(budgets(config, grid, n_global)).to(device) - n_global
        start, length = nearest(diagonal.clamp(min=n_global), count.clamp(min=0), n_global, last)
    length = torch.where(is_global, 0, length)
    return expand(
        rows.repeat(2), torch.cat([torch.zeros_like(start), start]), torch.cat([global_length, length])
    )
