"""The lists of the first blocks of a square layout."""

from __future__ import annotations

import torch

from ..grid import BlockGrid
from .lists import BlockLists, BlockMasks, build_csr


def cut_lists(
    grid: BlockGrid, rows: BlockLists, masks: BlockMasks | None, n_blocks: int
) -> tuple[BlockLists, BlockLists, BlockMasks | None]:
    """Row lists, column lists and masks of the first `n_blocks` rows and columns; blocks are numbered anew."""
    n_groups = (rows.indptr.numel() - 1) // grid.n_rows  # batch elements and heads
    owner = rows.owners()
    group, row, col = owner // grid.n_rows, owner % grid.n_rows, rows.indices.long()
    kept = ((group < n_groups) & (row < n_blocks) & (col < n_blocks)).nonzero().squeeze(1)
    group, row, col = group[kept], row[kept], col[kept]
    block_ids = torch.arange(kept.numel(), device=kept.device)
    n_lists = n_groups * n_blocks
    row_key, col_key = (group * n_blocks + row) * n_blocks + col, (group * n_blocks + col) * n_blocks + row
    return (
        build_csr(row_key, n_lists, n_blocks, col, block_ids),
        build_csr(col_key, n_lists, n_blocks, row, block_ids),
        None if masks is None else BlockMasks(masks.ids[rows.block_ids[kept].long()], masks.table),
    )
