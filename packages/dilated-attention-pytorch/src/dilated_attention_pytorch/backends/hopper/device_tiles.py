"""Joined tiles on a GPU: what `joined_tiles` makes, by kernels and without a host synchronisation."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ...grid import BlockGrid
from ...layout.lists import BlockLists
from .joined_tiles import TILE, JoinedTiles, joined_grid, key_type, most_tiles
from .kernels.tile_lists import entries_kernel, lists_kernel, tiles_kernel

ENTRIES = 256  # of a list that a program takes at once
AT_ONCE = 512  # blocks or tiles of a program


def joined_tiles_by_kernels(rows: BlockLists, grid: BlockGrid, n_heads: int) -> JoinedTiles:
    """The tiles of a layout with blocks of 16 or 32; see `joined_tiles`. Behind the lists indices mean nothing."""
    device, tiles = rows.device, joined_grid(grid)
    n_rows, n_cols = tiles.n_rows, tiles.n_cols
    n_entries, in_no_list = rows.indices.numel(), n_heads * n_rows * n_cols
    n_tiles, dtype = most_tiles(grid, n_heads, n_entries), key_type(in_no_list)
    int32: dict[str, Any] = {"dtype": torch.int32, "device": device}
    sizes = {"tile_rows": n_rows, "tile_cols": n_cols}
    keys = torch.full((n_entries,), in_no_list, dtype=dtype, device=device)
    bits = torch.empty(n_entries, **int32)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        entries_kernel[n_heads * grid.n_rows,](
            Offsets=rows.indptr, Indices=rows.indices, Keys=keys, Bits=bits, n_rows=grid.n_rows, **sizes,
            first=grid.first_row % (TILE // grid.block_size), PER_SIDE=TILE // grid.block_size, BLOCK=ENTRIES,
        )  # fmt: skip
        keys, order = keys.sort()
        is_new = torch.ones(n_entries, **int32)
        is_new[1:] = keys[1:] != keys[:-1]
        running = is_new.cumsum(0, dtype=torch.int32)
        row_keys, col_keys = (
            torch.full((n_tiles,), in_no_list, dtype=dtype, device=device) for _ in range(2)
        )
        active = torch.zeros(n_tiles, **int32)
        tiles_kernel[-(-n_entries // AT_ONCE),](
            Keys=keys, Order=order, Running=running, Bits=bits, RowKeys=row_keys, ColKeys=col_keys, Active=active,
            n_entries=n_entries, in_no_list=in_no_list, **sizes, BLOCK=AT_ONCE,
        )  # fmt: skip
        col_keys, col_order = col_keys.sort()
        row_indices, col_indices, row_ids, col_ids, numbers, by_keys = (
            torch.empty(n_tiles, **int32) for _ in range(6)
        )
        lists_kernel[-(-n_tiles // AT_ONCE),](
            RowKeys=row_keys, ColKeys=col_keys, ColOrder=col_order, Active=active, RowIndices=row_indices,
            ColIndices=col_indices, RowIds=row_ids, ColIds=col_ids, Numbers=numbers, NumbersByKeys=by_keys,
            n_tiles=n_tiles, in_no_list=in_no_list, **sizes, BLOCK=AT_ONCE,
        )  # fmt: skip
        # where every list begins: a list of rows has as many keys as there are columns
        bounds = [torch.arange(0, in_no_list + 1, n, dtype=dtype, device=device) for n in (n_cols, n_rows)]
        of_rows, of_cols = (
            torch.searchsorted(x, bound, out_int32=True)
            for x, bound in zip((row_keys, col_keys), bounds, strict=True)
        )
    return JoinedTiles(
        BlockLists(of_rows, row_indices, row_ids), BlockLists(of_cols, col_indices, col_ids), numbers, by_keys
    )
