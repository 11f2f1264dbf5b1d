"""The active blocks of windows of tiles, as vector operations over the tiles that each block holds parts of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..grid import BlockGrid


class Tiles(NamedTuple):
    """The tiles of a video."""

    numbers: tuple[int, int, int]
    """Along the three axes."""
    of_places: Tensor
    """The tile of each token in tile order, counted in raster order; int64 (num_tokens,)."""


class Held(NamedTuple):
    """Which blocks hold tokens of which tiles; int64 (n,) each."""

    block: Tensor
    tile: Tensor


def active_blocks_of_windows(
    tiles: Tiles, windows: Sequence[tuple[int, int, int]], grid: BlockGrid, n_text: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(head, row, column) of the active blocks in the order of the row lists; `windows` are those of the heads."""
    held = held_tiles(tiles, grid.block_size)
    made: dict[tuple[int, int, int], Tensor] = {}
    for window in windows:
        if window not in made:
            made[window] = keys_of_window(tiles, held, window, grid, n_text)
    head = torch.cat([torch.full_like(made[window], i) for i, window in enumerate(windows)])
    key = torch.cat([made[window] for window in windows])
    return head, key // grid.n_cols, key % grid.n_cols


def held_tiles(tiles: Tiles, block_size: int) -> Held:
    """The tiles of each block, in the order of the blocks."""
    place = torch.arange(tiles.of_places.numel(), device=tiles.of_places.device)
    n_tiles = torch.Size(tiles.numbers).numel()
    key = (place // block_size * n_tiles + tiles.of_places).unique()
    return Held(key // n_tiles, key % n_tiles)


def keys_of_window(
    tiles: Tiles, held: Held, window: tuple[int, int, int], grid: BlockGrid, n_text: int
) -> Tensor:
    """``row * n_cols + column`` of the active blocks of a window, ascending, int64 (n,)."""
    device, n_tiles = held.block.device, torch.Size(tiles.numbers).numel()
    seen = seen_tiles(tiles.numbers, held.tile, window)  # (n held, tiles of the window)
    first = torch.full((n_tiles,), grid.n_cols, device=device).scatter_reduce(
        0, held.tile, held.block, "amin"
    )
    last = torch.zeros(n_tiles, dtype=torch.int64, device=device).scatter_reduce(
        0, held.tile, held.block, "amax"
    )
    # the blocks of a tile follow one another
    most = int((last - first).max()) + 1
    col = first[seen].unsqueeze(-1) + torch.arange(most, device=device)
    is_of_tile = col <= last[seen].unsqueeze(-1)
    key = (held.block[:, None, None] * grid.n_cols + col)[is_of_tile]
    if n_text:
        row = torch.arange(grid.n_rows, device=device)[:, None] * grid.n_cols
        of_text = torch.arange(grid.q_len // grid.block_size, grid.n_cols, device=device)
        key = torch.cat([key, (row + of_text).flatten()])
    distinct: Tensor = key.unique()
    return distinct


def seen_tiles(numbers: tuple[int, int, int], tile: Tensor, window: tuple[int, int, int]) -> Tensor:
    """The tiles in the window of each of these tiles, int64 (n, tiles of a window)."""
    _, n_height, n_width = numbers
    coordinates = (tile // (n_height * n_width), tile // n_width % n_height, tile % n_width)
    along = []
    for n_axis, at, width in zip(numbers, coordinates, window):
        size = min(width, n_axis)
        start = (at - size // 2).clamp(0, n_axis - size)
        along.append(start[:, None] + torch.arange(size, device=tile.device))
    frame, row, col = along
    seen = (frame[:, :, None, None] * n_height + row[:, None, :, None]) * n_width + col[:, None, None, :]
    return seen.flatten(1)
