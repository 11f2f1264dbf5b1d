"""Blocks of 16 and 32 as tiles of 64 that hold several, which the kernels serve as blocks with masks inside them.

A tile that holds an active block is listed, with a number of 16 bits that says which of its blocks are active: bit 4 * i + j is
part (i, j) of 4 by 4, each of 16 queries by 16 keys. The kernels make words of masks of it (kernels/tile_masks.py), so no
mask is stored. Only where the small blocks have masks inside them has every tile a mask in memory.
All is made on the layout's device, without a host synchronisation: lists have room for as many tiles as there may be.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...grid import BlockGrid
from ...layout.lists import BlockLists, BlockMasks, build_csr, csr_of_sorted
from .entry_masks import masks_by_keys

TILE = 64
PARTS = 4  # of a side, 16 tokens each
WHOLE = 2 ** (PARTS * PARTS) - 1  # the number of a tile of which all blocks are active
WORDS = TILE // 32  # of a row of a mask
BYTES_OF_MASK = 2 * 4 * TILE * WORDS  # by queries, and by keys
INACTIVE, UNMASKED = -2, -1  # in place of the mask of a block


class JoinedTiles(NamedTuple):
    """The tiles of a layout."""

    rows: BlockLists
    cols: BlockLists
    """Of tiles. The block id of a tile is its place in the row lists."""
    numbers: Tensor
    """int32 (capacity,), of the entries of the row lists: which blocks are active, -1 where all are and behind the lists."""
    numbers_by_keys: Tensor
    """The same of the column lists, with keys for queries."""


@functools.lru_cache(maxsize=256)
def joined_grid(grid: BlockGrid) -> BlockGrid:
    """The grid of the tiles. The first and the last row may hold fewer blocks than others, as may the last column."""
    return dataclasses.replace(grid, block_size=TILE)


def most_tiles(grid: BlockGrid, n_heads: int, n_blocks: int) -> int:
    """Tiles that so many active blocks of all heads have at most."""
    tiles = joined_grid(grid)
    return min(n_blocks, n_heads * tiles.n_rows * tiles.n_cols)


def key_type(n_keys: int) -> torch.dtype:
    """The type of keys below a number; int32 is sorted in half the time and memory."""
    return torch.int32 if n_keys < 2**31 - 1 else torch.int64


def tile_of_entries(rows: BlockLists, grid: BlockGrid, n_heads: int) -> tuple[Tensor, Tensor]:
    """Of every entry of a layout's row lists its tile, as (head * rows + row) * columns + column of tiles, int64, and its place in it.

    Behind the lists the number of all tiles. The place is n * row + column of n by n blocks.
    """
    tiles, per_side = joined_grid(grid), TILE // grid.block_size
    owner, col = rows.owners(), rows.indices.long()
    row = owner % grid.n_rows + grid.first_row % per_side
    key = (owner // grid.n_rows * tiles.n_rows + row // per_side) * tiles.n_cols + col // per_side
    key = torch.where(owner < n_heads * grid.n_rows, key, n_heads * tiles.n_rows * tiles.n_cols)
    return key, row % per_side * per_side + col % per_side


def joined_tiles(rows: BlockLists, grid: BlockGrid, n_heads: int) -> JoinedTiles:
    """The tiles of a layout with blocks of 16 or 32, from its row lists: the definition. On a GPU device_tiles.py makes the same."""
    tiles, per_side = joined_grid(grid), TILE // grid.block_size
    n_rows, n_cols = tiles.n_rows, tiles.n_cols
    capacity, in_no_list = most_tiles(grid, n_heads, rows.indices.numel()), n_heads * n_rows * n_cols
    key, part = tile_of_entries(rows, grid, n_heads)
    key, order = key.sort(stable=True)
    is_new = torch.ones_like(key, dtype=torch.bool)
    is_new[1:] = key[1:] != key[:-1]
    place = is_new.cumsum(0) - 1  # of what is in no list the number of tiles, which may be the capacity
    keys = torch.full((capacity + 1,), in_no_list, device=key.device).scatter_(0, place, key)[:capacity]
    # of a block all bits, in a tile of parts of 16
    width = PARTS // per_side
    ones = sum(1 << (PARTS * i + j) for i in range(width) for j in range(width))
    bits = torch.full_like(part, ones) << (width * (PARTS * (part // per_side) + part % per_side))
    active = torch.zeros(capacity + 1, dtype=torch.int64, device=key.device)
    active = active.scatter_add_(0, place, bits[order])[:capacity]
    active = torch.where(keys < in_no_list, active, WHOLE)
    ids = torch.arange(capacity, dtype=torch.int32, device=key.device)
    tile_row, tile_col = keys // n_cols, keys % n_cols
    by_cols = (tile_row // n_rows * n_cols + tile_col) * n_rows + tile_row % n_rows
    by_cols = torch.where(keys < in_no_list, by_cols, in_no_list)
    cols = build_csr(by_cols, n_heads * n_cols, n_rows, tile_row % n_rows, ids)
    return JoinedTiles(
        csr_of_sorted(keys, n_heads * n_rows, n_cols, tile_col, ids),
        cols,
        number_of(active),
        number_of(transposed(active))[cols.block_ids.long()],
    )


def number_of(active: Tensor) -> Tensor:
    """The number of tiles with these bits."""
    return torch.where(active == WHOLE, -1, active).to(torch.int32)


def transposed(active: Tensor) -> Tensor:
    """The bits of tiles with keys for queries: those of quarters are transposed, then the quarters."""
    for bits, distance in ((0x0A0A, 3), (0x00CC, 6)):
        swapped = (active ^ (active >> distance)) & bits
        active = active ^ swapped ^ (swapped << distance)
    return active


class TileMasks(NamedTuple):
    """Masks of tiles whose blocks have masks."""

    numbers: Tensor
    """int32 (capacity,), the mask of every entry of the row lists: its place, -1 where all pairs count and behind the lists."""
    numbers_by_keys: Tensor
    """Likewise of the column lists."""
    table: Tensor
    """int32 (capacity, 64, 2), see `BlockMasks`."""
    by_keys: Tensor


def tile_masks(
    tiles: JoinedTiles, rows: BlockLists, grid: BlockGrid, n_heads: int, masks: BlockMasks
) -> TileMasks:
    """The masks of tiles, of a layout with these row lists and masks inside its blocks."""
    capacity, per_side, n_cols = tiles.numbers.numel(), TILE // grid.block_size, joined_grid(grid).n_cols
    n_parts = per_side**2
    key, part = tile_of_entries(rows, grid, n_heads)
    place = torch.searchsorted(tiles.rows.owners() * n_cols + tiles.rows.indices, key)
    # one more tile, for what is behind the lists
    is_listed = rows.owners() < rows.indptr.numel() - 1
    place = torch.where(is_listed, place, capacity)
    of_block = torch.full_like(rows.block_ids, UNMASKED)
    if masks.ids.numel():
        of_block = masks.ids[torch.where(is_listed, rows.block_ids, 0).long()]
    of_parts = torch.full(((capacity + 1) * n_parts,), INACTIVE, dtype=torch.int32, device=rows.device)
    of_parts = of_parts.scatter_(0, place * n_parts + part, of_block)[:-n_parts].view(capacity, n_parts)
    places = torch.arange(capacity, dtype=torch.int32, device=rows.device)
    is_listed = places < tiles.rows.indptr[-1]
    numbers = torch.where(is_listed & (of_parts != UNMASKED).any(1), places, -1)
    by_keys = of_parts.view(capacity, per_side, per_side).transpose(1, 2).reshape(capacity, n_parts)
    return TileMasks(
        numbers,
        numbers[tiles.cols.block_ids.long()],
        table_of_tiles(of_parts, masks.table),
        table_of_tiles(by_keys, masks_by_keys(masks.table)),
    )


def table_of_tiles(of_parts: Tensor, table: Tensor) -> Tensor:
    """Masks int32 (tiles, 64, 2), given the masks of their parts (tiles, parts) and the table of these."""
    size = table.shape[1]
    per_side = TILE // size
    of_size = torch.full((1, size), 2**size - 1, device=table.device).to(torch.int32)
    words = torch.cat([torch.zeros_like(of_size), of_size, table.flatten(1)])
    made = torch.zeros(of_parts.shape[0], per_side, size, WORDS, dtype=torch.int32, device=table.device)
    for part in range(per_side**2):
        i, column = part // per_side, part % per_side * size
        made[:, i, :, column // 32] |= words[of_parts[:, part].long() - INACTIVE] << column % 32
    return made.view(-1, TILE, WORDS)
