"""Budget: how many blocks each row keeps; as a running total the density is exact."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid


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


def available_per_row(grid: BlockGrid) -> Tensor:
    """Block pairs that dense attention computes in each budget row, int64 on the CPU."""
    rows = torch.arange(1, grid.n_budget_rows + 1, device="cpu")
    return rows if grid.causal else torch.full_like(rows, grid.n_cols)


def least_per_row(config: SparsePatternConfig, grid: BlockGrid) -> Tensor:
    """min_blocks, or all blocks of a row that has fewer."""
    return available_per_row(grid).clamp(max=config.least_blocks(grid.causal))


class Budget(NamedTuple):
    """What each budget row keeps at least, and what the ratio pays for up to it; int64 on the CPU."""

    least: Tensor
    share: Tensor

    def totals(self) -> Tensor:
        """C(i) = max(C(i-1) + least(i), share(i)), as a running maximum."""
        floor = self.least.cumsum(0)
        return floor + (self.share - floor).cummax(0).values.clamp(min=0)

    def blocks(self) -> Tensor:
        """Blocks to keep in each row."""
        totals = self.totals()
        return totals.diff(prepend=totals.new_zeros(1))

    def at_floor(self) -> Tensor:
        """Bool: the rows whose least takes the total above what the ratio pays for."""
        return self.totals() > self.share


def ratio_budget(config: SparsePatternConfig, grid: BlockGrid) -> Budget:
    """The budget of a pattern that treats all rows alike."""
    share = floor_share(written_ratio(config.sparsity_ratio), available_per_row(grid).cumsum(0))
    return Budget(least_per_row(config, grid), share)
