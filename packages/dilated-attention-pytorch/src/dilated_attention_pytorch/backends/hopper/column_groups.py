"""Token dilation: which columns a program of the backward takes together, and which rows see them.

Of a block of keys a head keeps every rate-th. The kept keys of `rate` columns fill a tile of as many keys as a block
has, which pays only if the same rows see the columns. The columns of a group stand a power of two apart, the stride at
which the tiles have the fewest blocks of queries to go through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layout.lists import BlockLists
from .longest_first import longest_first

MAX_GROUP_SIZE = 16  # columns in a group; also the largest rate of the kernels
MAX_RATES = 2  # distance classes of the kernels
MAX_STRIDE = 32  # larger ones would only fit longer sequences


def candidate_strides(n_cols: int, group_size: int) -> list[int]:
    """The strides that are tried."""
    tried = [1]
    while 2 * tried[-1] <= MAX_STRIDE and 2 * tried[-1] * group_size <= n_cols:
        tried.append(2 * tried[-1])
    return tried


def count_column_groups(n_cols: int, group_size: int) -> int:
    """How many groups there are, whichever stride is chosen; the last ones may have fewer columns, or none."""
    largest = candidate_strides(n_cols, group_size)[-1]
    return -(-n_cols // (largest * group_size)) * largest


@dataclass(frozen=True)
class ColumnGroupOrder:
    """Offsets of the columns' part of a work order with token dilation, from its start and in numbers.

    `column_groups` in kernels/backward_dilated_dkdv.py computes the same.
    """

    n_groups: int  # of each head; the only field that is no offset
    stride: int  # 1 number: how far apart the columns of a group stand
    n_long: int  # 1 number: how many groups are long, the most of any head
    order: int  # heads * n_groups: for every head its groups, the longest first
    # heads * n_groups * classes + 1: where the list of every (head, group, distance class) begins in `pairs`, and the
    # end of the last, counted in pairs
    list_offsets: int
    # 2 * n_entries: the lists, as pairs of a row and the members of the group that it sees, as bits; with room for as
    # many pairs as there are active blocks
    pairs: int
    size: int  # the end of the part

    @classmethod
    def of(cls, n_cols: int, n_heads: int, n_entries: int, rates: Sequence[int]) -> ColumnGroupOrder:
        """That of so many columns."""
        n_groups = count_column_groups(n_cols, max(rates))
        list_offsets = 2 + n_heads * n_groups
        pairs = list_offsets + n_heads * n_groups * len(rates) + 1
        return cls(n_groups, 0, 1, 2, list_offsets, pairs, pairs + 2 * n_entries)


def make_column_groups(
    cols: BlockLists, n_heads: int, n_rows: int, n_cols: int, rates: Sequence[int]
) -> Tensor:
    """The columns' part of a work order (`ColumnGroupOrder`), int32, without a host synchronisation.

    Column c is member ``c // stride % group_size`` of group ``c // (stride * group_size) * stride + c % stride``; the
    group size is the largest rate.
    """
    group_size, n_classes = max(rates), len(rates)
    n_groups = count_column_groups(n_cols, group_size)
    n_lists = n_heads * n_groups * n_classes
    owner = cols.owners()
    in_class, column, head = owner % n_classes, owner // n_classes % n_cols, owner // (n_classes * n_cols)
    rows = cols.indices.long()
    # what is behind the lists, where these have room for more blocks, is in none
    is_active, in_no_list = owner < n_heads * n_cols * n_classes, n_lists * n_rows
    key_type = torch.int32 if in_no_list < 2**31 else torch.int64  # sorted in half the time and memory

    def key_of(stride: int | Tensor) -> Tensor:
        """(head, group, class, row) of every entry as one number."""
        group = column // (stride * group_size) * stride + column % stride
        key = ((head * n_groups + group) * n_classes + in_class) * n_rows + rows
        return torch.where(is_active, key, in_no_list).to(key_type)

    def is_first(key: Tensor) -> Tensor:
        """Of sorted numbers, whether each differs from the one before it."""
        return torch.cat([torch.ones_like(key[:1], dtype=torch.bool), key[1:] != key[:-1]])

    def cost_of(stride: int) -> Tensor:
        """The number of steps: the tiles of a residue walk the list of a class only if the class keeps their keys."""
        key = key_of(stride).sort().values
        its_class, first = key // n_rows % n_classes, is_first(key) & (key < in_no_list)
        costs = [group_size // rate * (first & (its_class == i)).sum() for i, rate in enumerate(rates)]
        return torch.stack(costs).sum()

    strides = candidate_strides(n_cols, group_size)
    best = torch.stack([cost_of(stride) for stride in strides]).argmin().view(1)
    stride = torch.ones_like(best) << best  # a table of strides would be copied from the host

    key, order = key_of(stride).sort(stable=True)
    is_new = is_first(key)
    place = is_new.cumsum(0) - 1
    lengths = torch.zeros(n_lists + 1, dtype=torch.long, device=rows.device)
    lengths = lengths.scatter_add_(0, (key // n_rows).long(), is_new.long())[:n_lists]
    pairs = torch.zeros(rows.numel(), 2, dtype=torch.long, device=rows.device)
    pairs[:, 0].scatter_(0, place, (key % n_rows).long())
    pairs[:, 1].scatter_add_(0, place, 1 << (column // stride % group_size)[order])
    parts = [
        stride,
        *longest_first(lengths.view(n_heads, n_groups, n_classes).sum(2)),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        pairs,
    ]
    return torch.cat([part.view(-1).to(torch.int32) for part in parts])
