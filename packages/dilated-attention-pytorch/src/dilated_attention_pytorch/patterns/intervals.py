"""Intervals of columns, expanded to (row, column) pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def expand(rows: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (rows[i], starts[i] + 0 ... starts[i] + lengths[i] - 1) for all i, in order of i."""
    interval = torch.repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    steps = torch.arange(interval.numel(), device=interval.device) - first[interval]
    return rows[interval], starts[interval] + steps


def nearest(centre: Tensor, count: Tensor, lowest: int, highest: Tensor | int) -> tuple[Tensor, Tensor]:
    """Start and length of the interval of the `count` columns nearest to `centre` within [lowest, highest].

    Of two columns at the same distance the lower one is taken first.
    """
    others = (count - 1).clamp(min=0)
    below, above = (centre - lowest).clamp(min=0), (highest - centre).clamp(min=0)
    right = torch.minimum(above, others // 2)
    left = torch.minimum(below, others - right)
    right = torch.minimum(above, others - left)
    return centre - left, torch.where(count > 0, left + right + 1, 0)
