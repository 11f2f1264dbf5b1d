"""What `HopperBackend.prepare` makes of a layout, and the problem of the kernels' blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import TokenDilation
from ...grid import BlockGrid
from ...layout.lists import BlockLists, BlockMasks
from ..problem import AttentionProblem
from .entry_masks import mask_ids, masks_by_keys
from .joined_tiles import JoinedTiles, joined_grid, joined_tiles, tile_masks
from .quarters import LARGE, quartered_grid, quartered_lists, quartered_masks
from .turn_order import turn_lists
from .work_order import WorkOrder

KERNEL_BLOCKS = (64, 128)

MakeOrder = Callable[[BlockGrid, int, BlockLists, BlockLists, TokenDilation | None], Tensor]
JoinTiles = Callable[[BlockLists, BlockGrid, int], JoinedTiles]


class EntryMasks(NamedTuple):
    """Masks inside blocks, see entry_masks.py and joined_tiles.py."""

    of_rows: Tensor
    """int32 (capacity,), the mask of every entry of the row lists, -1 where all pairs count."""
    of_columns: Tensor
    """Likewise of the column lists."""
    table: Tensor | None = None
    """None: the masks say which of 4 by 4 parts of a tile are active."""
    by_keys: Tensor | None = None


class Prepared(NamedTuple):
    """What is prepared; `Backend.prepare` returns it as one tuple of tensors, with nothing for None."""

    work_order: Tensor
    """See work_order.py; of the kernels' blocks, as are the masks."""
    masks: EntryMasks | None
    lists: tuple[BlockLists, BlockLists] | None
    """Rows and columns of the kernels' blocks where the layout has others: of 128 for 256, and of 64 for 16 and 32."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, flat."""
        of_lists = () if self.lists is None else (*self.lists[0].tensors(), *self.lists[1].tensors())
        return (self.work_order, *(x for x in self.masks or () if x is not None), *of_lists)


def make_prepared(
    grid: BlockGrid,
    n_heads: int,
    lists: tuple[BlockLists, BlockLists],
    dilation: TokenDilation | None,
    masks: BlockMasks | None,
    make_order: MakeOrder,
    join: JoinTiles = joined_tiles,
    has_turns: bool = False,
) -> Prepared:
    """What the kernels need of a layout with so many lists for every row; without a host synchronisation.

    Besides the work order: of blocks of 256 the lists of their quarters, 96 bytes for each; of blocks of 16 and 32 the lists of
    tiles of 64 and their masks, at most 32 bytes for each block, and if these have masks inside them 1,024 bytes more; with turns
    8 bytes for every block of 128.
    """
    is_large, (rows, cols) = grid.block_size == LARGE, lists
    if grid.block_size < KERNEL_BLOCKS[0]:
        return of_joined_tiles(grid, n_heads, rows, masks, make_order, join)
    if is_large:
        grid, rows, cols = quartered_grid(grid), quartered_lists(rows, True), quartered_lists(cols, False)
    of_entries = None
    if masks is not None:
        table = quartered_masks(masks.table) if is_large else masks.table.contiguous()
        table = table.clone() if table.data_ptr() % 16 else table  # which the kernels read 16 bytes at a time
        parts = 4 if is_large else 1
        of_entries = EntryMasks(
            mask_ids(rows, masks, parts), mask_ids(cols, masks, parts), table, masks_by_keys(table)
        )
    order = make_order(grid, n_heads, rows, cols, dilation)
    if has_turns:
        order = with_turns(order, grid, n_heads, rows, cols)
    return Prepared(order, of_entries, (rows, cols) if is_large else None)


def with_turns(order: Tensor, grid: BlockGrid, n_heads: int, rows: BlockLists, cols: BlockLists) -> Tensor:
    """A work order of blocks of 128, and behind it the lists of turns."""
    n_rows, n_cols = grid.n_rows, grid.n_cols
    at = WorkOrder.of(n_rows, n_cols, n_heads, cols.indices.numel(), grid.block_size, None)
    first = at.columns_at + at.columns.order
    of_columns = order[first : first + n_heads * n_cols]
    order = torch.nn.functional.pad(order, (0, at.turns_at - order.numel()))
    return torch.cat([order, turn_lists(n_heads, n_rows, n_cols, rows, cols, of_columns).view(-1)])


def of_joined_tiles(
    grid: BlockGrid,
    n_heads: int,
    rows: BlockLists,
    masks: BlockMasks | None,
    make_order: MakeOrder,
    join: JoinTiles,
) -> Prepared:
    """`make_prepared` of a layout with blocks of 16 or 32, given its row lists."""
    tiles = join(rows, grid, n_heads)
    of_entries = EntryMasks(tiles.numbers, tiles.numbers_by_keys)
    if masks is not None:
        of_entries = EntryMasks(*tile_masks(tiles, rows, grid, n_heads, masks))
    order = make_order(joined_grid(grid), n_heads, tiles.rows, tiles.cols, None)
    return Prepared(order, of_entries, (tiles.rows, tiles.cols))


def work_order_of(problem: AttentionProblem) -> Tensor:
    """The work order of a problem."""
    return problem.prepared[0]


def as_with_turns(problem: AttentionProblem) -> AttentionProblem:
    """A problem of blocks of 128, as if its layout had been prepared with turns."""
    p, (order, *masks) = problem, problem.prepared
    return replace(p, prepared=(with_turns(order, p.grid, p.layout_heads, p.rows, p.cols), *masks))


def has_kernel_blocks(problem: AttentionProblem) -> bool:
    """Whether the kernels take the blocks of a problem as they are."""
    return problem.grid.block_size in KERNEL_BLOCKS


def masks_of(problem: AttentionProblem) -> EntryMasks | None:
    """The masks inside the blocks of a problem of the kernels' blocks."""
    made = problem.prepared[1:]
    return EntryMasks(*made) if made else None


def of_kernel_blocks(problem: AttentionProblem) -> AttentionProblem:
    """The problem with blocks of 64 or 128 in place of others: lists, grid, and the bias once for each of four quarters."""
    p = problem
    is_large = p.grid.block_size == LARGE
    of_kernels, rows, cols = p.prepared[:-6], p.prepared[-6:-3], p.prepared[-3:]
    fields: dict[str, Any] = {
        **p.__dict__,
        "grid": quartered_grid(p.grid) if is_large else joined_grid(p.grid),
        "rows": BlockLists(*rows),
        "cols": BlockLists(*cols),
        "prepared": of_kernels,
        "signature": p.signature,  # no problem with other blocks is launched, so it stands for this one
    }
    if p.block_bias is not None:
        fields["block_bias"] = p.block_bias.repeat_interleave(4, dim=2)
    return AttentionProblem.made_of(**fields)
