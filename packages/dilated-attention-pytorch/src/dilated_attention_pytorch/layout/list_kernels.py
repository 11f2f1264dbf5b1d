"""Triton kernels that make the lists of chosen blocks on a GPU; device_lists.py launches them.

A bit for every pair of blocks stands between the indices and the lists, so nothing is sorted:
    mark_kernel       sets the bit of every index, so that doubles fall together
    transpose_kernel  the same bits by columns, and how many are set in every word of 32, by rows and by columns
    (torch.cumsum     where the blocks of every word begin in the lists)
    rows_kernel       writes every index at its place: that of its word plus the set bits below its own
    columns_kernel    the same for the columns, with the block ids of the rows
Atomic operations only set bits and take the least place of doubles, so every run gives the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_ones(word):
    """How many bits of an int32 are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit
def ones_below(word, bit):
    """How many bits of a word below one of its bits are set."""
    return count_ones(word & ((1 << bit) - 1))


@triton.jit
def visible_columns(row, n_cols, first_row, IS_CAUSAL: tl.constexpr):
    """The first column that a row may not see."""
    end = n_cols
    if IS_CAUSAL:
        end = tl.minimum(n_cols, row + first_row + 1)
    return end


@triton.jit
def load_columns(Indices, Counts, owner, slot, n_slots, end, HAS_COUNTS: tl.constexpr):
    """The columns in the slots of a row, int32, and which of them count; the others are 0."""
    in_row = slot < n_slots
    if HAS_COUNTS:
        in_row &= slot < tl.load(Counts + owner)
    col = tl.load(Indices + owner.to(tl.int64) * n_slots + slot, mask=in_row, other=-1)
    is_kept = (col >= 0) & (col < end)
    return tl.where(is_kept, col, 0).to(tl.int32), is_kept


@triton.jit(do_not_specialize=["n_rows", "n_cols", "n_slots", "n_words", "first_row"])
def mark_kernel(
    Indices, Counts, Bits, n_rows, n_cols, n_slots, n_words, first_row,
    HAS_COUNTS: tl.constexpr, IS_CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for every row of every head. Bits: (heads, n_rows, n_words), zeros."""
    owner = tl.program_id(0)
    end = visible_columns(owner % n_rows, n_cols, first_row, IS_CAUSAL)
    for start in range(0, n_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        col, is_kept = load_columns(Indices, Counts, owner, slot, n_slots, end, HAS_COUNTS)
        word = Bits + owner.to(tl.int64) * n_words + (col >> 5)
        tl.atomic_or(word, 1 << (col & 31), mask=is_kept, sem="relaxed")


@triton.jit(do_not_specialize=["n_rows", "n_cols", "n_words", "n_col_words"])
def transpose_kernel(
    Bits, ColBits, RowStarts, ColStarts, n_rows, n_cols, n_words, n_col_words, COLS: tl.constexpr
):
    """A program for 32 rows and COLS columns of a head. ColBits: (heads, n_cols, n_col_words).

    RowStarts and ColStarts: a 0, then the number of set bits of each word.
    """
    tile = tl.program_id(0)
    i_word, block = tile % n_col_words, tile // n_col_words
    n_blocks = tl.cdiv(n_cols, COLS)
    head = (block // n_blocks).to(tl.int64)
    bit = tl.arange(0, 32)[:, None]
    row = i_word * 32 + bit
    list_of_row = head * n_rows + row

    i_row_word = block % n_blocks * (COLS // 32) + tl.arange(0, COLS // 32)[None, :]
    in_rows = (row < n_rows) & (i_row_word < n_words)
    place = list_of_row * n_words + i_row_word
    tl.store(RowStarts + 1 + place, count_ones(tl.load(Bits + place, mask=in_rows, other=0)), mask=in_rows)

    col = block % n_blocks * COLS + tl.arange(0, COLS)
    word = tl.load(
        Bits + list_of_row * n_words + (col >> 5)[None, :],
        mask=(row < n_rows) & (col < n_cols)[None, :],
        other=0,
    )
    col_word = tl.sum(((word >> (col & 31)[None, :]) & 1) << bit, 0)
    place = (head * n_cols + col) * n_col_words + i_word
    tl.store(ColBits + place, col_word, mask=col < n_cols)
    tl.store(ColStarts + 1 + place, count_ones(col_word), mask=col < n_cols)
    if tile == 0:
        tl.store(RowStarts, 0)
        tl.store(ColStarts, 0)


@triton.jit(do_not_specialize=["n_rows", "n_cols", "n_slots", "n_words", "first_row"])
def rows_kernel(
    Indices, Counts, Bits, RowStarts, RowPtr, RowIndices, RowIds, ColIndices, ColIds,
    n_rows, n_cols, n_slots, n_words, first_row,
    HAS_COUNTS: tl.constexpr, IS_CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for every row of every head: its list, and zeros behind all lists. RowIds: the largest int32 everywhere."""
    owner = tl.program_id(0)
    words = owner.to(tl.int64) * n_words
    n_entries = tl.load(RowStarts + tl.num_programs(0).to(tl.int64) * n_words)
    tl.store(RowPtr + owner, tl.load(RowStarts + words))
    if owner == tl.num_programs(0) - 1:
        tl.store(RowPtr + owner + 1, n_entries)
    end = visible_columns(owner % n_rows, n_cols, first_row, IS_CAUSAL)
    for start in range(0, n_slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        col, is_kept = load_columns(Indices, Counts, owner, slot, n_slots, end, HAS_COUNTS)
        word = tl.load(Bits + words + (col >> 5), mask=is_kept, other=0)
        at = tl.load(RowStarts + words + (col >> 5), mask=is_kept, other=0) + ones_below(word, col & 31)
        block_id = owner * n_slots + slot
        tl.store(RowIndices + at, col, mask=is_kept)
        tl.atomic_min(RowIds + at, block_id, mask=is_kept, sem="relaxed")  # of doubles the first counts
        is_behind = (slot < n_slots) & (block_id >= n_entries)
        tl.store(RowIndices + block_id, 0, mask=is_behind)
        tl.store(RowIds + block_id, 0, mask=is_behind)
        tl.store(ColIndices + block_id, 0, mask=is_behind)
        tl.store(ColIds + block_id, 0, mask=is_behind)


@triton.jit(do_not_specialize=["n_rows", "n_cols", "n_words", "n_col_words"])
def columns_kernel(
    Bits, RowStarts, RowIds, ColBits, ColStarts, ColPtr, ColIndices, ColIds,
    n_rows, n_cols, n_words, n_col_words, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A program for ROWS rows and COLS columns of a head."""
    tile = tl.program_id(0)
    n_row_blocks, n_blocks = tl.cdiv(n_rows, ROWS), tl.cdiv(n_cols, COLS)
    row_block, block = tile % n_row_blocks, tile // n_row_blocks
    head = (block // n_blocks).to(tl.int64)
    col = block % n_blocks * COLS + tl.arange(0, COLS)[:, None]
    row = row_block * ROWS + tl.arange(0, ROWS)[None, :]
    inside = (row < n_rows) & (col < n_cols)

    by_row = (head * n_rows + row) * n_words + (col >> 5)
    word = tl.load(Bits + by_row, mask=inside, other=0)
    is_active = ((word >> (col & 31)) & 1) != 0
    in_row_list = tl.load(RowStarts + by_row, mask=is_active, other=0) + ones_below(word, col & 31)
    by_col = (head * n_cols + col) * n_col_words + (row >> 5)
    col_word = tl.load(ColBits + by_col, mask=is_active, other=0)
    at = tl.load(ColStarts + by_col, mask=is_active, other=0) + ones_below(col_word, row & 31)
    tl.store(ColIndices + at, tl.broadcast_to(row, (COLS, ROWS)), mask=is_active)
    tl.store(ColIds + at, tl.load(RowIds + in_row_list, mask=is_active, other=0), mask=is_active)

    if row_block == 0:
        first = head * n_cols + col
        tl.store(
            ColPtr + first, tl.load(ColStarts + first * n_col_words, mask=col < n_cols), mask=col < n_cols
        )
        last = tl.num_programs(0) // (n_row_blocks * n_blocks) * n_cols
        if tile == 0:
            tl.store(ColPtr + last, tl.load(ColStarts + last.to(tl.int64) * n_col_words))
