"""Lists for a token dilation: a row or column has one for every class of distances."""

from __future__ import annotations

import torch

from ..config import TokenDilation
from ..grid import BlockGrid
from .lists import BlockLists, build_csr


def split_by_distance(
    grid: BlockGrid, row_lists: BlockLists, n_heads: int, is_exact: bool, dilation: TokenDilation
) -> tuple[BlockLists, BlockLists]:
    """Row and column lists, split into the distance classes of a token dilation.

    Args:
        grid: of the layout.
        row_lists: of the layout.
        n_heads: those of the layout over all batch elements.
        is_exact: whether the lists fill their tensors.
        dilation: its segments are the classes.
    """
    n_classes, n_rows, n_cols = len(dilation.segment_lengths), grid.n_rows, grid.n_cols
    owner, cols = row_lists.owners(), row_lists.indices.long()
    head, rows = owner // n_rows, owner % n_rows
    distance = (rows + grid.first_row - cols).abs() * grid.block_size
    classes = torch.zeros_like(distance)  # first segment longer than the distance
    for length in dilation.segment_lengths[:-1]:  # a tensor of them would be copied from the host
        classes += distance >= length
    row_key = (owner * n_classes + classes) * n_cols + cols
    col_key = ((head * n_cols + cols) * n_classes + classes) * n_rows + rows
    if not is_exact:
        is_active, in_no_list = owner < n_heads * n_rows, n_heads * n_rows * n_cols * n_classes
        row_key = torch.where(is_active, row_key, in_no_list)
        col_key = torch.where(is_active, col_key, in_no_list)
    return (
        build_csr(row_key, n_heads * n_rows * n_classes, n_cols, cols, row_lists.block_ids),
        build_csr(col_key, n_heads * n_cols * n_classes, n_rows, rows, row_lists.block_ids),
    )
