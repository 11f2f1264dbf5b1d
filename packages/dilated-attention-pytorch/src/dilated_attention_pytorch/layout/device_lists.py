"""Lists from indices on a GPU: what `lists_of_indices` makes, by kernels; int32 throughout, no host synchronisation."""

from __future__ import annotations

import torch

from .block_indices import BlockIndices
from .list_kernels import columns_kernel, mark_kernel, rows_kernel, transpose_kernel
from .lists import BlockLists

SLOTS, FEW_SLOTS = 256, 32  # indices of a row that a program takes at once; few where a row has no more
COLS = 128  # columns of a program that transposes bits
TILE_ROWS, TILE_COLS = 64, 32  # of a program that writes column lists
LARGEST = 2**31 - 1
MOST_WORDS_PER_INDEX = 8  # 64 bytes of them and of their starts, as much as sorting takes
FEW_WORDS = 2**22


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
    chosen = {
        "Indices": indices, "Counts": indices if counts is None else counts, "Bits": bits, "n_rows": n_rows, "n_cols": n_cols,
        "n_slots": n_slots, "n_words": n_words, "first_row": grid.first_row, "HAS_COUNTS": counts is not None,
        "IS_CAUSAL": grid.causal, "BLOCK": FEW_SLOTS if n_slots <= FEW_SLOTS else SLOTS,
    }  # fmt: skip
    mark_kernel[n_lists,](**chosen)
    shape = {"n_rows": n_rows, "n_cols": n_cols, "n_words": n_words, "n_col_words": n_col_words}
    transpose_kernel[heads * -(-n_cols // COLS) * n_col_words,](
        Bits=bits, ColBits=col_bits, RowStarts=row_starts, ColStarts=col_starts, **shape, COLS=COLS
    )
    row_starts.cumsum_(0)
    col_starts.cumsum_(0)
    rows = BlockLists(
        empty(n_lists + 1),
        empty(capacity),
        torch.full((capacity,), LARGEST, dtype=torch.int32, device=device),
    )
    cols = BlockLists(empty(heads * n_cols + 1), empty(capacity), empty(capacity))
    rows_kernel[n_lists,](
        RowStarts=row_starts, RowPtr=rows.indptr, RowIndices=rows.indices, RowIds=rows.block_ids,
        ColIndices=cols.indices, ColIds=cols.block_ids, **chosen,
    )  # fmt: skip
    columns_kernel[heads * -(-n_cols // TILE_COLS) * -(-n_rows // TILE_ROWS),](
        Bits=bits, RowStarts=row_starts, RowIds=rows.block_ids, ColBits=col_bits, ColStarts=col_starts,
        ColPtr=cols.indptr, ColIndices=cols.indices, ColIds=cols.block_ids, **shape, ROWS=TILE_ROWS, COLS=TILE_COLS,
    )  # fmt: skip
    return rows, cols
