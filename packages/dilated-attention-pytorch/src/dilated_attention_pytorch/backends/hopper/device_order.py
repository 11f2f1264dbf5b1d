"""The work order on a GPU: what `make_work_order` makes, by kernels, in place and without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import TokenDilation
from ...grid import BlockGrid
from ...launching.kept_kernel import KeptKernel
from ...layout.lists import BlockLists
from .column_groups import make_column_groups
from .kernels.list_order import merge_kernel, order_kernel
from .work_order import GROUP_TOKENS, ListOrder, WorkOrder, lists_per_group

GROUPS = 1024  # of a head that a program takes at once
ENTRIES = 256  # of a list that a program takes at once
ORDER, MERGE = KeptKernel(order_kernel), KeptKernel(merge_kernel)


def work_order_by_kernels(
    grid: BlockGrid, n_heads: int, rows: BlockLists, cols: BlockLists, dilation: TokenDilation | None
) -> Tensor:
    """The tensor that `WorkOrder` describes, for block sizes 64 and 128; see `make_work_order`."""
    n_classes = 1 if dilation is None else len(dilation.dilation_rates)
    n_rows, n_cols, block_size = grid.n_rows, grid.n_cols, grid.block_size
    offsets = WorkOrder.of(n_rows, n_cols, n_heads, rows.indices.numel(), block_size, dilation)
    size = offsets.columns_at + offsets.columns.size
    made = torch.zeros(size, dtype=torch.int32, device=rows.device)
    order_lists(made, 0, offsets.rows, rows, n_heads, n_rows, n_classes, block_size)
    if offsets.rows.singles < offsets.rows.size:
        single = ListOrder.of(n_rows, n_heads, 0, GROUP_TOKENS)
        order_lists(made, offsets.rows.singles, single, rows, n_heads, n_rows, n_classes, GROUP_TOKENS)
    if isinstance(offsets.columns, ListOrder):
        order_lists(made, offsets.columns_at, offsets.columns, cols, n_heads, n_cols, 1, block_size)
    elif dilation is not None:
        groups = make_column_groups(cols, n_heads, n_rows, n_cols, dilation.dilation_rates)
        made[offsets.columns_at :].copy_(groups)
    return made


def order_lists(
    made: Tensor,
    start: int,
    at: ListOrder,
    lists: BlockLists,
    n_heads: int,
    n_lists: int,
    n_classes: int,
    block_size: int,
) -> None:
    """Write the part of rows, or of columns without token dilation, which begins at `start`."""
    per_group, device = lists_per_group(block_size), made.device
    ORDER.run(
        device, n_heads,
        (lists.indptr, made, start + at.n_long, start + at.order, n_lists, at.n_groups, n_classes, per_group, GROUPS),
    )  # fmt: skip
    if per_group == 2:
        shared = torch.empty_like(lists.indices)
        MERGE.run(
            device, n_heads * at.n_groups,
            (lists.indptr, lists.indices, shared, made, start + at.union_sizes, start + at.places, start + at.blocks, n_lists,
             at.n_groups, ENTRIES),
        )  # fmt: skip
