"""What `HopperBackend.prepare` makes of a layout, and the problem of the kernels' blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...config import TokenDilation
from ...grid import BlockGrid
from ...layout.lists import BlockLists, BlockMasks
from ..problem import AttentionProblem
from .entry_masks import mask_ids, masks_by_keys
from .quarters import LARGE, quartered_grid, quartered_lists, quartered_masks

MakeOrder = Callable[[BlockGrid, int, BlockLists, BlockLists, TokenDilation | None], Tensor]


class EntryMasks(NamedTuple):
    """Masks inside blocks, see entry_masks.py."""

    of_rows: Tensor
    """int32 (capacity,), the mask of every entry of the row lists."""
    of_columns: Tensor
    """Likewise of the column lists."""
    table: Tensor
    by_keys: Tensor


class Prepared(NamedTuple):
    """What is prepared; `Backend.prepare` returns it as one tuple of tensors, with nothing for None."""

    work_order: Tensor
    """See work_order.py; of the kernels' blocks, as are the masks."""
    masks: EntryMasks | None
    lists: tuple[BlockLists, BlockLists] | None
    """Rows and columns of blocks of 128 where the layout has blocks of 256."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, flat."""
        of_lists = () if self.lists is None else (*self.lists[0].tensors(), *self.lists[1].tensors())
        return (self.work_order, *(self.masks or ()), *of_lists)


def make_prepared(
    grid: BlockGrid,
    n_heads: int,
    lists: tuple[BlockLists, BlockLists],
    dilation: TokenDilation | None,
    masks: BlockMasks | None,
    make_order: MakeOrder,
) -> Prepared:
    """What the kernels need of a layout with so many lists for every row; without a host synchronisation."""
    is_large, (rows, cols) = grid.block_size == LARGE, lists
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
    return Prepared(order, of_entries, (rows, cols) if is_large else None)


def work_order_of(problem: AttentionProblem) -> Tensor:
    """The work order of a problem."""
    return problem.prepared[0]


def masks_of(problem: AttentionProblem) -> EntryMasks | None:
    """The masks inside the blocks of a problem."""
    return None if problem.block_masks is None else EntryMasks(*problem.prepared[1:5])


def of_kernel_blocks(problem: AttentionProblem) -> AttentionProblem:
    """The problem with blocks of 128 in place of blocks of 256: lists, grid, and the bias once for each of the four."""
    p = problem
    tensors = p.prepared[-6:]
    fields: dict[str, Any] = {
        **p.__dict__,
        "grid": quartered_grid(p.grid),
        "rows": BlockLists(*tensors[:3]),
        "cols": BlockLists(*tensors[3:]),
        "prepared": p.prepared[:-6],
        "signature": p.signature,  # no problem with blocks of 256 is launched, so it stands for this one
    }
    if p.block_bias is not None:
        fields["block_bias"] = p.block_bias.repeat_interleave(4, dim=2)
    return AttentionProblem.made_of(**fields)
