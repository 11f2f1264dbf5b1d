"""How many blocks each row keeps, on a device: the rule of `patterns.budget`, also for batch elements of different lengths."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ..caching import BoundedCache, make_once
from ..grid import BlockGrid

LARGEST_TOTAL = 2**31 - 1  # pairs of blocks
CACHE = BoundedCache(64)


class Share(NamedTuple):
    """What rows may keep: this fraction of the pairs of blocks that there are, but at least `least` of each row."""

    numerator: int
    denominator: int
    is_above: int  # 1 where the fraction is a little above the one that was meant, see `floor_share`
    least: int

    @classmethod
    def of(cls, ratio: Fraction, least: int) -> Share:
        near = ratio.limit_denominator(LARGEST_TOTAL)
        return cls(near.numerator, near.denominator, int(near > ratio), least)

    def most(self, n_cols: int) -> int:
        """No row of so many columns keeps more."""
        granted = (n_cols * self.numerator + self.denominator - 1) // self.denominator
        return min(n_cols, max(self.least, granted))


def row_budgets(share: Share, grid: BlockGrid, lengths: Tensor | None, device: torch.device) -> Tensor:
    """The blocks of each row, int32 (n_rows,), or (batch, 1, n_rows) with `lengths`.

    Args:
        share: of the pairs.
        grid: of the layout.
        lengths: int (batch,), the keys of each batch element. If causal no row depends on them.
        device: of the result.
    """
    if lengths is not None and not grid.causal:
        blocks = (lengths.long() + grid.block_size - 1) // grid.block_size
        return budgets_of(share, blocks[:, None, None].expand(-1, 1, grid.n_rows))
    if torch.compiler.is_compiling():
        return budgets_of_grid(share, grid, device)
    made: Tensor = make_once(
        CACHE, (share, grid, device), device, lambda: budgets_of_grid(share, grid, device)
    )
    return made


def budgets_of_grid(share: Share, grid: BlockGrid, device: torch.device) -> Tensor:
    """int32 (n_rows,)."""
    if not grid.causal:
        return budgets_of(share, torch.full((grid.n_rows,), grid.n_cols, device=device))
    budgets = budgets_of(share, torch.arange(1, grid.n_cols + 1, device=device))
    first = grid.first_row
    if first >= 0:
        return budgets[first : first + grid.n_rows]
    return torch.cat([budgets.new_zeros(-first), budgets])  # rows before the first key


def budgets_of(share: Share, available: Tensor) -> Tensor:
    """int32 (..., n_rows) of the pairs of each row, int64 (..., n_rows).

    The row i keeps C(i) - C(i - 1) with C(i) = max(C(i - 1) + min(least, available), floor(ratio * pairs up to i)).
    """
    granted = (available.cumsum(-1) * share.numerator - share.is_above) // share.denominator
    floor = available.clamp(max=share.least).cumsum(-1)
    totals = floor + (granted - floor).cummax(-1).values.clamp(min=0)
    return totals.diff(dim=-1, prepend=torch.zeros_like(totals[..., :1])).to(torch.int32)
