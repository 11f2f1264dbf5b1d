"""Triton kernels that join blocks of 16 and 32 to tiles on the GPU; device_tiles.py launches them, with sorts between them.

entries_kernel  of every block the key of its tile, by which blocks are sorted, and its place in the tile as bits
tiles_kernel    of sorted blocks, whose tiles are counted: the keys of the tiles by rows and by columns, and their bits
lists_kernel    of tiles in both orders the lists, and which of their blocks are active
"""

from __future__ import annotations

import triton
import triton.language as tl

WHOLE = tl.constexpr(2**16 - 1)  # all bits of a tile


@triton.jit(do_not_specialize=["n_rows", "tile_rows", "tile_cols", "first"])
def entries_kernel(
    Offsets, Indices, Keys, Bits, n_rows, tile_rows, tile_cols, first, PER_SIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for every row of blocks. `first`: the place of the first row in its tile."""
    WIDTH: tl.constexpr = 4 // PER_SIDE
    ONES: tl.constexpr = 1 if WIDTH == 1 else 0x33
    i_list = tl.program_id(0)
    row = i_list % n_rows + first
    tile_row = (i_list // n_rows) * tile_rows + row // PER_SIDE
    key = tile_row.to(Keys.dtype.element_ty) * tile_cols
    end = tl.load(Offsets + i_list + 1)
    for start in range(tl.load(Offsets + i_list), end, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < end
        col = tl.load(Indices + entry, mask=inside, other=0)
        tl.store(Keys + entry, key + col // PER_SIDE, mask=inside)
        place = WIDTH * (4 * (row % PER_SIDE) + col % PER_SIDE)
        tl.store(Bits + entry, ONES << place, mask=inside)


@triton.jit(do_not_specialize=["n_entries", "in_no_list", "tile_rows", "tile_cols"])
def tiles_kernel(
    Keys, Order, Running, Bits, RowKeys, ColKeys, Active, n_entries, in_no_list, tile_rows, tile_cols, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for BLOCK sorted blocks; Running: how many tiles there are up to each, its own included."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < n_entries
    key = tl.load(Keys + entry, mask=inside, other=0)
    inside &= key < in_no_list
    running = tl.load(Running + entry, mask=inside, other=1)
    before = tl.load(Running + entry - 1, mask=inside & (entry > 0), other=0)
    bits = tl.load(Bits + tl.load(Order + entry, mask=inside, other=0), mask=inside, other=0)
    tl.atomic_or(Active + running - 1, bits, mask=inside, sem="relaxed")
    is_first = inside & (running > before)
    row, col = key // tile_cols, key % tile_cols
    tl.store(RowKeys + running - 1, key, mask=is_first)
    col_key = ((row // tile_rows) * tile_cols + col) * tile_rows + row % tile_rows
    tl.store(ColKeys + running - 1, col_key, mask=is_first)


@triton.jit
def number_of(active, is_listed):
    """The number of tiles with these bits."""
    return tl.where(is_listed & (active != WHOLE), active, -1)


@triton.jit(do_not_specialize=["n_tiles", "in_no_list", "tile_rows", "tile_cols"])
def lists_kernel(
    RowKeys, ColKeys, ColOrder, Active, RowIndices, ColIndices, RowIds, ColIds, Numbers, NumbersByKeys, n_tiles, in_no_list,
    tile_rows, tile_cols, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for BLOCK tiles of both orders."""
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tile < n_tiles
    key = tl.load(RowKeys + tile, mask=inside, other=0)
    active = tl.load(Active + tile, mask=inside, other=0)
    tl.store(RowIndices + tile, (key % tile_cols).to(tl.int32), mask=inside)
    tl.store(RowIds + tile, tile, mask=inside)
    tl.store(Numbers + tile, number_of(active, key < in_no_list), mask=inside)
    key = tl.load(ColKeys + tile, mask=inside, other=0)
    place = tl.load(ColOrder + tile, mask=inside, other=0).to(tl.int32)
    active = tl.load(Active + place, mask=inside, other=0)
    swapped = (active ^ (active >> 3)) & 0x0A0A  # as `transposed` of joined_tiles.py
    active = active ^ swapped ^ (swapped << 3)
    swapped = (active ^ (active >> 6)) & 0x00CC
    active = active ^ swapped ^ (swapped << 6)
    tl.store(ColIndices + tile, (key % tile_rows).to(tl.int32), mask=inside)
    tl.store(ColIds + tile, place, mask=inside)
    tl.store(NumbersByKeys + tile, number_of(active, key < in_no_list), mask=inside)
