"""Lists from indices on a GPU: what `lists_of_indices` makes, by kernels; int32 throughout, no host synchronisation."""

from __future__ import annotations

import torch

from ..launching.kept_kernel import KeptKernel
from .block_indices import BlockIndices
from .list_kernels import columns_kernel, mark_kernel, rows_kernel, transpose_kernel
from .lists import BlockLists

SLOTS, FEW_SLOTS = 256, 32  # indices of a row that a program takes at once; few where a row has no more
COLS = 128  # columns of a program that transposes bits
TILE_ROWS, TILE_COLS = 64, 32  # of a program that writes column lists
LARGEST = 2**31 - 1
MOST_WORDS_PER_INDEX = 8  # 64 bytes of them and of their starts, as much as sorting takes
FEW_WORDS = 2**22
MARK, TRANSPOSE = KeptKernel(mark_kernel), KeptKernel(transpose_kernel)
ROWS, COLUMNS = KeptKernel(rows_kernel), KeptKernel(columns_kernel)


def words(n: int) -> int:
    """Int32 words for so many bits."""
    return -(-n // 32)


def fits(given: BlockIndices) -> bool:
    """Whether there are indices, and for each of them few enough pairs of blocks: a bit for every pair has to be worth it."""
    heads, grid, capacity = given.heads, given.grid, given.indices.numel()
    n_words = heads * (grid.n_rows * words(grid.n_cols) + grid.n_cols * words(grid.n_rows))
    return capacity > 0 and n_words <= max(MOST_WORDS_PER_INDEX * capacity, FEW_WORDS)


def lists_by_kernels(given: BlockIndices) -> tuple[BlockLists, BlockLists]:
    """Row and column lists, bit-equal to those of `lists_of_indices`.

    Beside the lists, 16 bytes for every index, it takes 16 bytes for every 32 pairs of blocks, active or not.
    """
    indices, counts, grid = given
    device, heads, n_slots = indices.device, given.heads, indices.shape[3]
    n_rows, n_cols, n_lists, capacity = grid.n_rows, grid.n_cols, given.n_lists, indices.numel()
    n_words, n_col_words = words(n_cols), words(n_rows)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    bits = torch.zeros(n_lists * n_words, dtype=torch.int32, device=device)
    col_bits = empty(heads * n_cols * n_col_words)
    row_starts, col_starts = empty(bits.numel() + 1), empty(col_bits.numel() + 1)
    given_rows = indices, indices if counts is None else counts, bits
    sizes = n_rows, n_cols, n_slots, n_words, grid.first_row
    constants = counts is not None, grid.causal, FEW_SLOTS if n_slots <= FEW_SLOTS else SLOTS
    MARK.run(device, n_lists, (*given_rows, *sizes, *constants))
    shape = n_rows, n_cols, n_words, n_col_words
    n_tiles = heads * -(-n_cols // COLS) * n_col_words
    TRANSPOSE.run(device, n_tiles, (bits, col_bits, row_starts, col_starts, *shape, COLS))
    row_starts.cumsum_(0)
    col_starts.cumsum_(0)
    no_ids = torch.full((capacity,), LARGEST, dtype=torch.int32, device=device)
    rows = BlockLists(empty(n_lists + 1), empty(capacity), no_ids)
    cols = BlockLists(empty(heads * n_cols + 1), empty(capacity), empty(capacity))
    written = *rows.tensors(), cols.indices, cols.block_ids
    ROWS.run(device, n_lists, (*given_rows, row_starts, *written, *sizes, *constants))
    n_tiles = heads * -(-n_cols // TILE_COLS) * -(-n_rows // TILE_ROWS)
    starts = bits, row_starts, rows.block_ids, col_bits, col_starts
    COLUMNS.run(device, n_tiles, (*starts, *cols.tensors(), *shape, TILE_ROWS, TILE_COLS))
    return rows, cols
