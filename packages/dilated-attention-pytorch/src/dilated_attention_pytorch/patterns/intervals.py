"""Runs of neighbouring columns, expanded to (row, column) pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def expand(rows: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (rows[x], starts[x] + 0 ... lengths[x] - 1) for all x, in order of x."""
    owners = torch.repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    steps = torch.arange(owners.numel(), device=owners.device) - first[owners]
    return rows[owners], starts[owners] + steps


def nearest(centre: Tensor, count: Tensor, lowest: int, highest: Tensor | int) -> tuple[Tensor, Tensor]:
    """Start and length of the `count` columns nearest to `centre` within [lowest, highest], the lower one first."""
    others = (count - 1).clamp(min=0)
    below, above = (centre - lowest).clamp(min=0), (highest - centre).clamp(min=0)
    right = torch.minimum(above, others // 2)
    left = torch.minimum(below, others - right)
    right = torch.minimum(above, others - left)
    return centre - left, torch.where(count > 0, left + right + 1, 0)
