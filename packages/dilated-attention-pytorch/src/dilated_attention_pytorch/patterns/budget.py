"""How many blocks each row keeps, so that the density is exact as a running total."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from .grid import BlockGrid


def floor_share(ratio: Fraction, totals: Tensor) -> Tensor:
    """floor(ratio * totals) without rounding, for positive totals; int64 on the CPU.

    Let p be the fraction nearest to the ratio of those with denominators up to the largest total. Between p and the
    ratio lies no m / total, so for p <= ratio m / total <= ratio means m / total <= p, else m / total < p.
    """
    most = int(totals.max())
    near = ratio.limit_denominator(most)
    if most * near.numerator < 2**63:
        return (totals * near.numerator - int(near > ratio)) // near.denominator
    shares = [total * ratio.numerator // ratio.denominator for total in totals.tolist()]
    return torch.tensor(shares, dtype=torch.int64, device="cpu")


def written_ratio(ratio: float | Fraction) -> Fraction:
    """The ratio as the decimal that was written: 0.29 is 29/100, not the nearest binary fraction."""
    return Fraction(str(ratio))


def running_totals(ratio: float | Fraction, grid: BlockGrid, mandatory: Tensor) -> Tensor:
    """C(i) = max(C(i-1) + mandatory(i), floor(ratio * A(i))) over the budget rows, as a running maximum."""
    rows = torch.arange(1, grid.n_budget_rows + 1, device="cpu")
    available = rows * (rows + 1) // 2 if grid.causal else rows * grid.n_cols
    least = mandatory.cumsum(0)
    excess = floor_share(written_ratio(ratio), available) - least
    return least + excess.cummax(0).values.clamp(min=0)


def row_budgets(ratio: float | Fraction, grid: BlockGrid, mandatory: Tensor | None = None) -> Tensor:
    """Blocks to keep in each budget row, int64 on the CPU; at least `mandatory` (default 1) in each."""
    if mandatory is None:
        mandatory = torch.ones(grid.n_budget_rows, dtype=torch.int64, device="cpu")
    totals = running_totals(ratio, grid, mandatory)
    return totals.diff(prepend=totals.new_zeros(1))
