"""How many blocks each row keeps, so that the density is exact as a running total."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from .grid import BlockGrid


def floor_share(ratio: Fraction, totals: Tensor) -> Tensor:
    """floor(ratio * totals) without rounding, int64."""
    if int(totals.max()) * ratio.numerator < 2**63:
        return totals * ratio.numerator // ratio.denominator
    return torch.tensor([total * ratio.numerator // ratio.denominator for total in totals.tolist()])


def written_ratio(ratio: float) -> Fraction:
    """The ratio as the decimal that was written: 0.29 is 29/100, not the nearest binary fraction."""
    return Fraction(str(ratio))


def running_totals(ratio: float, grid: BlockGrid, mandatory: Tensor) -> Tensor:
    """C(i) = max(C(i-1) + mandatory(i), floor(ratio * A(i))) over the budget rows, as a running maximum."""
    rows = torch.arange(1, grid.n_budget_rows + 1)
    available = rows * (rows + 1) // 2 if grid.causal else rows * grid.n_cols
    least = mandatory.cumsum(0)
    excess = floor_share(written_ratio(ratio), available) - least
    return least + excess.cummax(0).values.clamp(min=0)


def row_budgets(ratio: float, grid: BlockGrid, mandatory: Tensor | None = None) -> Tensor:
    """Blocks to keep in each budget row, int64 on the CPU; at least `mandatory` (default 1) in each."""
    if mandatory is None:
        mandatory = torch.ones(grid.n_budget_rows, dtype=torch.int64)
    totals = running_totals(ratio, grid, mandatory)
    return totals.diff(prepend=totals.new_zeros(1))
