"""A second, slow definition of the tile order and its windows: loops over tokens."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

Triple = tuple[int, int, int]


def tiles_along(length: int, size: int) -> list[range]:
    """The tokens of each tile of an axis."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def tokens_in_tiles(video: Triple, tile: Triple) -> list[int]:
    """The tokens, counted in raster order: tiles whole along all axes first, then those smaller along the width, and so on."""
    axes = [tiles_along(length, size) for length, size in zip(video, tile)]
    is_small = [[len(part) < size for part in parts] for parts, size in zip(axes, tile)]
    numbers = list(itertools.product(*(range(len(parts)) for parts in axes)))
    numbers.sort(key=lambda at: [is_small[axis][at[axis]] for axis in range(3)])
    order = []
    for at in numbers:
        for frame, row, col in itertools.product(*(axes[axis][at[axis]] for axis in range(3))):
            order.append((frame * video[1] + row) * video[2] + col)
    return order


def tile_of(token: int, video: Triple, tile: Triple) -> Triple:
    """The tile of a token, along the three axes."""
    frame, rest = divmod(token, video[1] * video[2])
    row, col = divmod(rest, video[2])
    return frame // tile[0], row // tile[1], col // tile[2]


def sees(query: Triple, key: Triple, video: Triple, tile: Triple, window: Triple) -> bool:
    """Whether a tile is in the window of another, which is moved inside the video at its edges."""
    for axis in range(3):
        number = -(-video[axis] // tile[axis])
        size = min(window[axis], number)
        start = min(max(query[axis] - size // 2, 0), number - size)
        if not start <= key[axis] < start + size:
            return False
    return True


def seen_by_windows(video: Triple, tile: Triple, window: Triple, block_size: int, n_text: int) -> Tensor:
    """Bool (n_rows, n_cols): blocks with tokens of two tiles of which one sees the other, and all blocks with text."""
    order = tokens_in_tiles(video, tile)
    n_video, n_keys = len(order), len(order) + n_text
    n_rows, n_cols = -(-n_video // block_size), -(-n_keys // block_size)
    held = [
        {tile_of(token, video, tile) for token in order[i * block_size : (i + 1) * block_size]}
        for i in range(n_rows)
    ]
    seen = torch.zeros(n_rows, n_cols, dtype=torch.bool)
    for i, j in itertools.product(range(n_rows), range(n_cols)):
        has_text = min((j + 1) * block_size, n_keys) > n_video
        of_video = j < n_rows and any(
            sees(a, b, video, tile, window) for a, b in itertools.product(held[i], held[j])
        )
        seen[i, j] = has_text or of_video
    return seen
