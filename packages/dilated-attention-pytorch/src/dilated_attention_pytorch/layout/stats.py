"""LayoutStats: what a layout keeps, how far its queries see, and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from ..patterns.registry import budget_of
from .element_masks import active_blocks, kept_pairs
from .lists import BlockLists, BlockMasks


@dataclass(frozen=True)
class LayoutStats:
    """Statistics of a layout."""

    num_rows: int
    num_cols: int
    num_heads: int
    num_active_blocks: int
    num_available_blocks: int
    density: float
    """Active blocks over those that dense attention computes."""
    num_pairs: int
    """Pairs of a query and a key that it sees, over all batch elements and heads: those of the masks inside blocks, and of a
    causal layout none of a later key."""
    element_density: float
    """Those pairs over the ones that dense attention with the same lengths and causality computes."""
    num_masks: int
    """Distinct masks inside blocks."""
    asked_density: float | None
    """`sparsity_ratio`, the mean over the heads; None for a window in tokens and for layouts of your own."""
    rows_at_floor: int | None
    """Rows of all heads that keep more than the ratio pays for, because of `min_blocks` or global blocks."""
    min_blocks_per_row: int
    mean_blocks_per_row: float
    max_blocks_per_row: int
    reach: int
    """Tokens from a query's block to the farthest block that it sees, in one layer."""
    num_bytes: int


def stats_of(
    grid: BlockGrid,
    num_heads: int,
    batch: int,
    row_lists: BlockLists,
    col_lists: BlockLists,
    masks: BlockMasks | None,
    configs: tuple[SparsePatternConfig, ...] | None,
) -> LayoutStats:
    """The statistics of a layout with these lists, masks and patterns."""
    active = active_blocks(row_lists, grid, num_heads)
    row, col = active.blocks.row, active.blocks.col
    num_pairs = int(kept_pairs(grid, active, masks).sum())
    n_heads = batch * num_heads
    n_active, n_available = row.numel(), n_heads * grid.available()
    counts = row_lists.indptr.diff()
    tensors = (*row_lists.tensors(), *col_lists.tensors(), *(masks or ()))
    return LayoutStats(
        num_rows=grid.n_rows,
        num_cols=grid.n_cols,
        num_heads=num_heads,
        num_active_blocks=n_active,
        num_available_blocks=n_available,
        density=n_active / n_available,
        num_pairs=num_pairs,
        element_density=num_pairs / (n_heads * grid.available_pairs()),
        num_masks=0 if masks is None else masks.table.shape[0],
        asked_density=asked_density(configs),
        rows_at_floor=rows_at_floor(grid, configs),
        min_blocks_per_row=int(counts.min()),
        mean_blocks_per_row=float(counts.double().mean()),
        max_blocks_per_row=int(counts.max()),
        reach=reach(grid, row, col),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def asked_density(configs: tuple[SparsePatternConfig, ...] | None) -> float | None:
    """See `LayoutStats.asked_density`."""
    if configs is None or any(config.window_size is not None for config in configs):
        return None
    return float(sum(Fraction(str(config.sparsity_ratio)) for config in configs) / len(configs))


def rows_at_floor(grid: BlockGrid, configs: tuple[SparsePatternConfig, ...] | None) -> int | None:
    """See `LayoutStats.rows_at_floor`."""
    if configs is None:
        return None
    budgets = [budget_of(config, grid) for config in configs]
    if None in budgets:
        return None
    return sum(int(grid.visible_rows(budget.at_floor()).sum()) for budget in budgets if budget is not None)


def reach(grid: BlockGrid, row: Tensor, col: Tensor) -> int:
    """Tokens from a query's block to the farthest of these blocks that it sees."""
    if row.numel() == 0:
        return 0
    distance = (grid.diagonal(row.device)[row] - col).abs()
    return int(distance.max()) * grid.block_size
