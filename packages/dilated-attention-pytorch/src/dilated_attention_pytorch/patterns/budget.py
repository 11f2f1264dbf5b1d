"""How many blocks each row keeps, such that the density is exact as a running total over the rows."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid


def floor_share(ratio: Fraction, totals: Tensor) -> Tensor:
    """floor(ratio * totals) in exact arithmetic, for positive totals; int64 on the CPU.

    Products with the ratio's own numerator may overflow int64. Let p be the fraction nearest to the ratio among those
    with a denominator up to the largest total. No m / total lies between p and the ratio, so m / total <= ratio is
    the same as m / total <= p if p <= ratio, and as m / total < p otherwise.
    """
    largest = int(totals.max())
    near = ratio.limit_denominator(largest)
    if largest * near.numerator < 2**63:
        return (totals * near.numerator - int(near > ratio)) // near.denominator
    shares = [total * ratio.numerator // ratio.denominator for total in totals.tolist()]
    return torch.tensor(shares, dtype=torch.int64, device="cpu")


def written_ratio(ratio: float | Fraction) -> Fraction:
    """The ratio as an exact fraction; a float is read as the decimal it prints as: 0.29 is 29/100."""
    return Fraction(str(ratio))


def available_per_row(grid: BlockGrid) -> Tensor:
    """Block pairs that dense attention computes in each budget row, int64 (n_budget_rows,) on the CPU."""
    rows = torch.arange(1, grid.n_budget_rows + 1, device="cpu")
    return rows if grid.causal else torch.full_like(rows, grid.n_cols)


def least_per_row(config: SparsePatternConfig, grid: BlockGrid) -> Tensor:
    """The fewest blocks each budget row keeps: `min_blocks`, or all of them in a row that has fewer."""
    return available_per_row(grid).clamp(max=config.least_blocks(grid.causal))


class Budget(NamedTuple):
    """Both int64 (n_budget_rows,) on the CPU.

    least: the fewest blocks each row keeps.
    share: the blocks that the ratio grants to a row and all rows before it together.
    """

    least: Tensor
    share: Tensor

    def totals(self) -> Tensor:
        """Blocks kept up to each row: C(i) = max(C(i-1) + least(i), share(i)), computed as a running maximum."""
        floor = self.least.cumsum(0)
        return floor + (self.share - floor).cummax(0).values.clamp(min=0)

    def blocks(self) -> Tensor:
        """Blocks to keep in each row."""
        totals = self.totals()
        return totals.diff(prepend=totals.new_zeros(1))

    def at_floor(self) -> Tensor:
        """Bool: the rows whose `least` lifts the running total above the share of the ratio."""
        return self.totals() > self.share


def ratio_budget(config: SparsePatternConfig, grid: BlockGrid) -> Budget:
    """The budget of a pattern that treats all rows alike."""
    share = floor_share(written_ratio(config.sparsity_ratio), available_per_row(grid).cumsum(0))
    return Budget(least_per_row(config, grid), share)
