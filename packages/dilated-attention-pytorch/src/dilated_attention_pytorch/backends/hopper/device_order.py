"""The work order on a GPU: what `make_work_order` makes, by kernels, in place and without a host synchronisation."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ...config import TokenDilation
from ...grid import BlockGrid
from ...layout.lists import BlockLists
from .column_groups import make_column_groups
from .kernels.list_order import level_kernel, merge_kernel
from .work_order import GROUP_TOKENS, ListOrder, WorkOrder, lists_per_group

GROUPS = 1024  # of a head that a program takes at once
ENTRIES = 256  # of a list that a program takes at once


def work_order_by_kernels(
    grid: BlockGrid, n_heads: int, rows: BlockLists, cols: BlockLists, dilation: TokenDilation | None
) -> Tensor:
    """The tensor that `WorkOrder` describes, for block sizes 64 and 128; see `make_work_order`."""
    n_classes = 1 if dilation is None else len(dilation.dilation_rates)
    n_rows, n_cols, block_size = grid.n_rows, grid.n_cols, grid.block_size
    offsets = WorkOrder.of(n_rows, n_cols, n_heads, rows.indices.numel(), block_size, dilation)
    made = torch.empty(offsets.columns_at + offsets.columns.size, dtype=torch.int32, device=rows.device)
    made[offsets.rows.size : offsets.columns_at] = 0
    with torch.cuda.device(rows.device) if rows.device.type == "cuda" else contextlib.nullcontext():
        order_by_kernels(made, offsets.rows, rows, n_heads, n_rows, n_classes, block_size)
        if offsets.rows.singles < offsets.rows.size:
            single = ListOrder.of(n_rows, n_heads, 0, GROUP_TOKENS)
            of_singles = made[offsets.rows.singles :]
            order_by_kernels(of_singles, single, rows, n_heads, n_rows, n_classes, GROUP_TOKENS)
        of_columns = made[offsets.columns_at :]
        if isinstance(offsets.columns, ListOrder):
            order_by_kernels(of_columns, offsets.columns, cols, n_heads, n_cols, 1, block_size)
        elif dilation is not None:
            of_columns.copy_(make_column_groups(cols, n_heads, n_rows, n_cols, dilation.dilation_rates))
    return made


def order_by_kernels(
    part: Tensor,
    at: ListOrder,
    lists: BlockLists,
    n_heads: int,
    n_lists: int,
    n_classes: int,
    block_size: int,
) -> None:
    """Write the part of rows, or of columns without token dilation; it begins at the start of `part`."""
    levels = torch.empty(n_heads, at.n_groups, dtype=torch.int32, device=part.device)
    n_long = torch.empty(n_heads, dtype=torch.int32, device=part.device)
    per_group, sizes = lists_per_group(block_size), {"n_lists": n_lists, "n_groups": at.n_groups}
    level_kernel[n_heads,](
        Offsets=lists.indptr, Levels=levels, NumLong=n_long, Part=part, union_sizes=at.union_sizes, **sizes,
        n_classes=n_classes, PER_GROUP=per_group, BLOCK=GROUPS,
    )  # fmt: skip
    part[at.n_long : at.order] = n_long.amax(0, keepdim=True)
    # of equals the first comes first: neighbours stay together
    order = levels.sort(dim=1, descending=True, stable=True).indices
    part[at.order : at.union_sizes].view_as(order).copy_(order)
    if per_group == 2:
        merge_kernel[n_heads * at.n_groups,](
            Offsets=lists.indptr, Indices=lists.indices, Shared=torch.empty_like(lists.indices), Part=part, union_sizes=at.union_sizes, places=at.places,
            blocks=at.blocks, **sizes, BLOCK=ENTRIES,
        )  # fmt: skip
