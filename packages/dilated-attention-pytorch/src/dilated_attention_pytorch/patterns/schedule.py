"""In which order lists of different length are worked off, and which neighbours share blocks: index arithmetic only."""

from __future__ import annotations

import torch
from torch import Tensor

LONG = 2.0  # times the mean length: such lists are started before all others
STEPS_PER_OCTAVE = (
    4  # lists that differ less than 2 ** (1 / 4) keep their place, so that neighbours stay together
)


def start_of_columns(n_heads: int, n_rows: int, n_entries: int, block_size: int) -> int:
    """Where the schedule of the columns begins in a tensor that holds that of the rows before it: at a multiple of 16 bytes."""
    n_groups = -(-n_rows // max(1, 128 // block_size))
    length = 1 + 2 * n_heads * n_groups + (2 * n_entries if block_size < 128 else 0)
    return -(-length // 4) * 4


def make_schedule(
    offsets: Tensor, indices: Tensor, n_heads: int, n_rows: int, n_classes: int, block_size: int
) -> Tensor:
    """What a persistent kernel needs beside row lists (or column lists), as one int32 tensor without a host synchronisation.

    Rows are taken in groups of 128 tokens: one row at block size 128, two at 64. The parts, one after the other:
        1                   number of long groups, the most of any head
        n_heads * n_groups  for every head its groups, the longest first
        n_heads * n_groups  number of different blocks in the rows of a group          (block size 64 only, else 0)
        n_entries           place of every entry among the different blocks of its group            (the same)
        n_entries           the blocks of the group in ascending order, each as 2 * column + (more than one row sees
                            it), -1 for one seen just before                                         (the same)
    """
    per_group = max(1, 128 // block_size)
    n_groups = -(-n_rows // per_group)
    lengths = offsets.diff().view(n_heads, n_rows, n_classes).sum(2)
    lengths = torch.nn.functional.pad(lengths, (0, n_groups * per_group - n_rows))
    lengths = lengths.view(n_heads, n_groups, per_group).sum(2)
    parts = order_of_groups(lengths)
    if per_group == 1:
        parts.append(torch.zeros_like(parts[1]))
    else:
        parts += shared_blocks(offsets, indices, n_heads, n_rows, n_groups, per_group, n_classes)
    return torch.cat([part.to(torch.int32) for part in parts])


def level_of(lengths: Tensor) -> Tensor:
    """floor(STEPS_PER_OCTAVE * log2(lengths)), from the bits of the numbers: log2 of 8 is below 3 on some GPUs."""
    mantissa, exponent = torch.frexp(lengths.double())  # mantissa in [1 / 2, 1)
    level = STEPS_PER_OCTAVE * (exponent.long() - 1)
    for step in range(1, STEPS_PER_OCTAVE):
        level += mantissa >= 2.0 ** (step / STEPS_PER_OCTAVE - 1)
    return level


def order_of_groups(lengths: Tensor) -> list[Tensor]:
    """The first two parts of a schedule, from the lengths of the groups, (heads, groups): the number of long ones, and the order."""
    level = level_of(lengths.clamp(min=1))
    mean = lengths.double().mean(1, keepdim=True).clamp(min=1)
    is_long = level > level_of(mean * LONG)
    n_long = is_long.sum(1).max().view(1)
    order = level.sort(dim=1, descending=True, stable=True).indices
    return [n_long, order.view(-1)]


def shared_blocks(
    offsets: Tensor, indices: Tensor, n_heads: int, n_rows: int, n_groups: int, per_group: int, n_classes: int
) -> list[Tensor]:
    """The last three parts of a schedule: counts, places and columns of the union of a group's rows."""
    counts = offsets.diff().long()
    owner = torch.repeat_interleave(counts, output_size=indices.numel()) // n_classes
    head, row = owner // n_rows, owner % n_rows
    group = head * n_groups + row // per_group
    n_cols = 2**31
    key, order = (group * n_cols + indices).sort(stable=True)  # rows of a group stand one after the other
    is_new = torch.ones_like(key, dtype=torch.bool)
    is_new[1:] = key[1:] != key[:-1]
    running = is_new.cumsum(0)
    unions = torch.zeros(n_heads * n_groups, dtype=torch.long, device=key.device)
    unions.scatter_add_(0, group[order], is_new.long())
    before = unions.cumsum(0) - unions
    places = torch.empty_like(running)
    places[order] = running - 1 - before[group[order]]
    is_shared = torch.zeros_like(is_new)
    is_shared[:-1] = ~is_new[1:]
    columns = torch.where(is_new, 2 * indices[order].long() + is_shared, -1)
    return [unions, places, columns]
