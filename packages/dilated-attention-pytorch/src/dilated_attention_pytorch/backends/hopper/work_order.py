"""The work order: what the persistent kernels need of a layout beside its lists, in one int32 tensor.

It says in which order the rows and the columns are processed, and which blocks neighbours share; behind it large layouts of
some patterns have lists of turns (turn_order.py). Made on the layout's device without a host synchronisation. Rows and columns are
taken in groups of 128 tokens: one at block size 128, two at 64; columns with token dilation in the groups of column_groups.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import TokenDilation
from ...grid import BlockGrid
from ...layout.lists import BlockLists
from .column_groups import ColumnGroupOrder, make_column_groups
from .longest_first import longest_first

GROUP_TOKENS = 128


@dataclass(frozen=True)
class ListOrder:
    """Offsets of the part of the rows, or of the columns without token dilation, from its start and in numbers.

    `block_lists` in kernels/tile_scheduler.py computes the same.
    """

    n_groups: int  # of each head; the only field that is no offset
    n_long: int  # 1 number: how many groups are long, the most of any head
    order: int  # heads * n_groups: for every head its groups, the longest first
    union_sizes: int  # heads * n_groups: the different blocks of a group; 0 at block size 128
    # n_entries: the place of every entry among the different blocks of its group; block size 64 only
    places: int
    # n_entries: the blocks of each group at their places, as 2 * block + (both lists of the group have it), then -1; block
    # size 64 only
    blocks: int
    # another part, in which every list is a group of its own: of rows of block size 64 only, where heads are paired in
    # place of rows
    singles: int
    size: int  # the end of the part

    @classmethod
    def of(
        cls, n_lists: int, n_heads: int, n_entries: int, block_size: int, has_singles: bool = False
    ) -> ListOrder:
        """That of so many rows or columns."""
        n_groups = -(-n_lists // lists_per_group(block_size))
        n_shared = n_entries if lists_per_group(block_size) > 1 else 0
        union_sizes = 1 + n_heads * n_groups
        places = union_sizes + n_heads * n_groups
        blocks = places + n_shared
        singles = end = blocks + n_shared
        if has_singles and n_shared:
            end += cls.of(n_lists, n_heads, 0, GROUP_TOKENS).size
        return cls(n_groups, 0, 1, union_sizes, places, blocks, singles, end)


@dataclass(frozen=True)
class WorkOrder:
    """Where everything stands in the tensor of a layout."""

    rows: ListOrder  # from the start of the tensor
    columns: ListOrder | ColumnGroupOrder  # from `columns_at` on
    columns_at: int  # the first number of the columns, at a multiple of 16 bytes
    turns_at: int  # the first number of the lists of turns, likewise, where there are any (turn_order.py): the end otherwise

    @classmethod
    def of(
        cls,
        n_rows: int,
        n_cols: int,
        n_heads: int,
        n_entries: int,
        block_size: int,
        dilation: TokenDilation | None,
    ) -> WorkOrder:
        """That of a layout of so many rows, columns, heads and active blocks."""
        rows = ListOrder.of(n_rows, n_heads, n_entries, block_size, has_singles=True)
        columns: ListOrder | ColumnGroupOrder
        if dilation is None:
            columns = ListOrder.of(n_cols, n_heads, n_entries, block_size)
        else:
            columns = ColumnGroupOrder.of(n_cols, n_heads, n_entries, dilation.dilation_rates)
        columns_at = -(-rows.size // 4) * 4
        return cls(rows, columns, columns_at, columns_at + -(-columns.size // 4) * 4)


def lists_per_group(block_size: int) -> int:
    """Rows or columns in a group."""
    return max(1, GROUP_TOKENS // block_size)


def make_work_order(
    grid: BlockGrid, n_heads: int, rows: BlockLists, cols: BlockLists, dilation: TokenDilation | None
) -> Tensor:
    """The tensor that `WorkOrder` describes, int32: the definition. On a GPU device_order.py makes the same.

    Behind the lists, where these have room for more blocks, it means nothing.

    Args:
        grid: of the layout; its rows and columns count, its lengths do not.
        n_heads: of the layout.
        rows: its row lists, split into distance classes with a token dilation.
        cols: its column lists, likewise.
        dilation: the token dilation.
    """
    n_classes = 1 if dilation is None else len(dilation.dilation_rates)
    of_rows = order_lists(rows, n_heads, grid.n_rows, n_classes, grid.block_size)
    if lists_per_group(grid.block_size) > 1 and rows.indices.numel():
        of_singles = order_lists(rows, n_heads, grid.n_rows, n_classes, GROUP_TOKENS)
        of_rows = torch.cat([of_rows, of_singles])
    if dilation is None:
        of_columns = order_lists(cols, n_heads, grid.n_cols, 1, grid.block_size)
    else:
        of_columns = make_column_groups(cols, n_heads, grid.n_rows, grid.n_cols, dilation.dilation_rates)
    of_rows = torch.nn.functional.pad(of_rows, (0, -of_rows.numel() % 4))
    return torch.cat([of_rows, of_columns])


def order_lists(lists: BlockLists, n_heads: int, n_lists: int, n_classes: int, block_size: int) -> Tensor:
    """The part of rows, or of columns without token dilation."""
    per_group = lists_per_group(block_size)
    n_groups = -(-n_lists // per_group)
    lengths = lists.indptr.diff().view(n_heads, n_lists, n_classes).sum(2)
    lengths = torch.nn.functional.pad(lengths, (0, n_groups * per_group - n_lists))
    n_long, order = longest_first(lengths.view(n_heads, n_groups, per_group).sum(2))
    shared = [torch.zeros_like(order)]
    if per_group > 1:
        shared = shared_blocks(lists, n_heads, n_lists, n_groups, per_group, n_classes)
    return torch.cat([part.view(-1).to(torch.int32) for part in (n_long, order, *shared)])


def shared_blocks(
    lists: BlockLists, n_heads: int, n_lists: int, n_groups: int, per_group: int, n_classes: int
) -> list[Tensor]:
    """`union_sizes`, `places` and `blocks` of the groups.

    Between two blocks that both lists of a group have, those of one list alternate with those of the other, so that no
    warpgroup waits while a run of tiles is not for it: of a and b blocks, the i-th of the first list is (2 i + 1) / 2 a of
    the way, the j-th of the second (2 j + 1) / 2 b, and of equals the first list's comes first.
    """
    indices = lists.indices
    owner = lists.owners() // n_classes
    # n_heads * n_groups for what is behind the lists
    group = owner // n_lists * n_groups + owner % n_lists // per_group
    key, order = (group * 2**31 + indices).sort(stable=True)  # lists of a group stand one after the other
    group, is_second = group[order], (owner % n_lists % per_group == 1)[order]
    is_new = torch.ones_like(key, dtype=torch.bool)
    is_new[1:] = key[1:] != key[:-1]
    is_shared = torch.zeros_like(is_new)
    is_shared[:-1] = ~is_new[1:]
    sizes = torch.zeros(n_heads * n_groups + 1, dtype=torch.long, device=key.device)
    sizes.scatter_add_(0, group, is_new.long())
    # a segment ends with a shared block, or with its group
    starts = torch.ones_like(is_new)
    starts[1:] = ~is_new[:-1] | (group[1:] != group[:-1])
    entry = torch.arange(key.numel(), device=key.device)
    start = torch.where(starts, entry, 0).cummax(0).values if key.numel() else entry
    of_first, of_second = (is_new & ~is_shared & (is_second == second) for second in (False, True))
    (i, a), (j, b) = (ranks_of(mine, start, starts) for mine in (of_first, of_second))
    offset = torch.where(of_first, i + ((2 * i + 1) * b + a - 1) // (2 * a).clamp(min=1), a + b)
    offset = torch.where(of_second, j + ((2 * j + 1) * a + b) // (2 * b).clamp(min=1), offset)
    n_before = is_new.cumsum(0) - is_new.long() - (sizes.cumsum(0) - sizes)[group]
    place = n_before[start] + offset
    places = torch.empty_like(entry)
    places[order] = place
    # a group's blocks begin where its lists do
    of_group = torch.searchsorted(group, torch.arange(n_heads * n_groups + 1, device=key.device))
    blocks = torch.full_like(entry, -1)
    # a shared block twice, with the same number
    blocks[of_group[group] + place] = 2 * indices[order].long() + (is_shared | ~is_new)
    return [sizes[:-1], places, blocks]


def ranks_of(mine: Tensor, start: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """For every entry of sorted segments: how many of `mine` are before it in its segment, and how many its segment has."""
    before = mine.cumsum(0) - mine.long()
    segment = starts.cumsum(0) - 1
    n = torch.zeros_like(before).scatter_add_(0, segment, mine.long())
    return before - before[start], n[segment]
