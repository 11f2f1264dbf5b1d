"""The order in which groups of lists are started: the longest first, neighbours of similar length side by side."""

from __future__ import annotations

import torch
from torch import Tensor

LONG = 2.0  # times the mean length: such groups are started before all others
# Groups whose lengths differ by less than 2 ** (1 / 4) keep their order, so that neighbours stay together.
STEPS_PER_OCTAVE = 4


def level_of(lengths: Tensor) -> Tensor:
    """floor(STEPS_PER_OCTAVE * log2(lengths)), from the bits of the numbers: log2 of 8 is below 3 on some GPUs."""
    mantissa, exponent = torch.frexp(lengths.double())  # mantissa in [1 / 2, 1)
    level = STEPS_PER_OCTAVE * (exponent.long() - 1)
    for step in range(1, STEPS_PER_OCTAVE):
        level += mantissa >= 2.0 ** (step / STEPS_PER_OCTAVE - 1)
    return level


def longest_first(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The number of long groups, (1,), the most of any head, and the order of the groups of each head.

    Args:
        lengths: int (heads, groups), the entries of each group.
    """
    level = level_of(lengths.clamp(min=1))
    # `mean` multiplies by 1 / n on a GPU, which rounds twice
    mean = (lengths.double().sum(1, keepdim=True) / lengths.shape[1]).clamp(min=1)
    is_long = level > level_of(mean * LONG)
    n_long = is_long.sum(1).max().view(1)
    return n_long, level.sort(dim=1, descending=True, stable=True).indices
