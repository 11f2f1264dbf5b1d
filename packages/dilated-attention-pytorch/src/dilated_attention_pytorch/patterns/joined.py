"""Token dilation: which columns a program of the backward takes together, and what they see; index arithmetic only.

Of a block of keys a head keeps every rate-th. The kept keys of `rate` columns fill a tile of as many keys as a block has,
which is worth it only if the columns are seen by the same rows. Columns that stand a power of two apart are joined: the
distance with which the tiles have the fewest blocks of queries to go through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .schedule import order_of_groups

MOST_JOINED = 16  # columns in a tile; also the largest rate of the kernels
MOST_RATES = 2  # distance classes of the kernels
FARTHEST = 32  # columns apart that are tried; more would only fit longer sequences


def distances(n_cols: int, joined: int) -> list[int]:
    """How far apart the columns of a tile may stand."""
    tried = [1]
    while 2 * tried[-1] <= FARTHEST and 2 * tried[-1] * joined <= n_cols:
        tried.append(2 * tried[-1])
    return tried


def count_joined_groups(n_cols: int, joined: int) -> int:
    """How many groups there are, whichever distance is chosen; the last ones may have fewer columns, or none."""
    farthest = distances(n_cols, joined)[-1]
    return -(-n_cols // (farthest * joined)) * farthest


def joined_columns(
    offsets: Tensor, indices: Tensor, n_heads: int, n_rows: int, n_cols: int, rates: Sequence[int]
) -> Tensor:
    """What the backward needs beside the column lists, as one int32 tensor without a host synchronisation.

    With `apart`, the distance, column c is member c // apart % joined of group c // (apart * joined) * apart +
    c % apart, where joined is the largest rate. The parts, one after the other:
        1                       apart
        1                       number of long groups, the most of any head
        n_heads * n_groups      for every head its groups, the longest first
        n_lists + 1             where the list of every (head, group, distance class) begins, and the end of the last
        2 * n_entries           the lists: a row that sees one of the columns, and the members that it sees as bits;
                                with room for as many as there are active blocks
    """
    joined, n_classes = max(rates), len(rates)
    n_groups = count_joined_groups(n_cols, joined)
    n_lists = n_heads * n_groups * n_classes
    owner = torch.repeat_interleave(offsets.diff().long(), output_size=indices.numel())
    in_class, column, head = owner % n_classes, owner // n_classes % n_cols, owner // (n_classes * n_cols)
    rows = indices.long()

    def key_of(apart: int | Tensor) -> Tensor:
        """(head, group, class, row) of every entry as one number."""
        group = column // (apart * joined) * apart + column % apart
        return ((head * n_groups + group) * n_classes + in_class) * n_rows + rows

    def is_first(key: Tensor) -> Tensor:
        """Of the sorted numbers, whether one is not equal to that before it."""
        return torch.cat([torch.ones_like(key[:1], dtype=torch.bool), key[1:] != key[:-1]])

    def cost_of(distance: int) -> Tensor:
        """Steps: the tiles of all residues go through the list of a class, but for those whose keys are not kept."""
        key = key_of(distance).sort().values
        its_class, first = key // n_rows % n_classes, is_first(key)
        costs = [joined // rate * (first & (its_class == i)).sum() for i, rate in enumerate(rates)]
        return torch.stack(costs).sum()

    best = torch.stack([cost_of(distance) for distance in distances(n_cols, joined)]).argmin().view(1)
    apart = torch.ones_like(best) << best  # a table of distances would be copied from the host

    key, order = key_of(apart).sort(stable=True)
    is_new = is_first(key)
    place = is_new.cumsum(0) - 1
    lengths = torch.zeros(n_lists, dtype=torch.long, device=indices.device)
    lengths.scatter_add_(0, key // n_rows, is_new.long())
    pairs = torch.zeros(indices.numel(), 2, dtype=torch.long, device=indices.device)
    pairs[:, 0].scatter_(0, place, key % n_rows)
    pairs[:, 1].scatter_add_(0, place, 1 << (column // apart % joined)[order])
    parts = [
        apart,
        *order_of_groups(lengths.view(n_heads, n_groups, n_classes).sum(2)),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        pairs.view(-1),
    ]
    return torch.cat([part.to(torch.int32) for part in parts])
