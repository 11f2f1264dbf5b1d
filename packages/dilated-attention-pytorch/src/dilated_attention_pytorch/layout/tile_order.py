"""TileOrder: the tokens of a video, tile by tile (sliding tile attention, arXiv:2502.04507).

A video of (frames, height, width) tokens is cut into tiles. Whole tiles come first, then the smaller ones of each edge, so
that where blocks divide the tiles only those of the edges share a block. Everything is views and one copy: no index tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import values
from .._torch_internals import without_modes
from ..config import check_block_size
from ..grid import BlockGrid
from .arguments import checked_device
from .layout import BlockLayout
from .tile_windows import Tiles, active_blocks_of_windows

AXES = ("frames", "height", "width")


class Part(NamedTuple):
    """The tiles of one size along an axis."""

    start: int
    number: int
    size: int

    @property
    def length(self) -> int:
        return self.number * self.size


class Box(NamedTuple):
    """The tiles of one size of a video: its part of each axis."""

    frames: Part
    height: Part
    width: Part

    @property
    def n_tokens(self) -> int:
        return self.frames.length * self.height.length * self.width.length

    def in_tiles(self, video: Tensor, dim: int) -> Tensor:
        """(..., tokens of the box, ...) of (..., frames, height, width, ...), tile by tile."""
        for axis, part in enumerate(self):
            video = video.narrow(dim + axis, part.start, part.length)
        for axis, part in enumerate(self):  # (frames, height, width), a pair (number, size) each
            video = video.unflatten(dim + 2 * axis, (part.number, part.size))
        tiles: Tensor = video.movedim((dim, dim + 2, dim + 4), (dim, dim + 1, dim + 2))
        return tiles.flatten(dim, dim + 5)

    def in_raster(self, tokens: Tensor, dim: int) -> Tensor:
        """The inverse of `in_tiles`: (..., frames, height, width, ...) of the box."""
        numbers, sizes = [part.number for part in self], [part.size for part in self]
        tiles = tokens.unflatten(dim, (*numbers, *sizes))
        video: Tensor = tiles.movedim((dim, dim + 1, dim + 2), (dim, dim + 2, dim + 4))
        for axis in range(3):
            video = video.flatten(dim + axis, dim + axis + 1)
        return video


@dataclass(frozen=True)
class TileOrder:
    """The order in which the tokens of each tile of a video are consecutive.

    Args:
        frames: tokens of the video along the time.
        height: tokens along the height.
        width: tokens along the width; the tokens of a raster run along it first.
        tile: tokens of a tile along the three axes. Where they do not divide the video, the tiles at its end are smaller.

    Raises:
        ValueError: a number is out of range; the message names it.
        TypeError: a number is not an int.

    Examples:
        >>> order = TileOrder(4, 8, 8, tile=(2, 4, 4))
        >>> tokens = torch.arange(256)
        >>> order.to_tiles(tokens, dim=0)[:8].tolist()
        [0, 1, 2, 3, 8, 9, 10, 11]
        >>> torch.equal(order.to_raster(order.to_tiles(tokens, dim=0), dim=0), tokens)
        True
    """

    frames: int
    height: int
    width: int
    tile: Sequence[int] = (4, 4, 4)

    def __post_init__(self) -> None:
        for name in AXES:
            given = getattr(self, name)
            tokens = values.tokens(given)
            if tokens is None:
                raise values.wrong(
                    values.integer(given),
                    f"{name} must be a positive number of tokens, got {values.shown(given)}",
                )
            object.__setattr__(self, name, tokens)
        object.__setattr__(self, "tile", checked_triple("tile", self.tile, "tokens"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens along the three axes."""
        return self.frames, self.height, self.width

    @property
    def num_tokens(self) -> int:
        """Tokens of the video."""
        return self.frames * self.height * self.width

    @property
    def num_tiles(self) -> tuple[int, int, int]:
        """Tiles along the three axes, the smaller ones at the end too."""
        frames, height, width = (-(-length // size) for length, size in zip(self.shape, self.tile))
        return frames, height, width

    def boxes(self) -> list[Box]:
        """The tiles by their size, the whole ones first."""
        return [Box(*parts) for parts in itertools.product(*self._parts())]

    def _parts(self) -> list[list[Part]]:
        """The parts of each axis: the whole tiles, then the smaller one at the end."""
        parts = []
        for length, size in zip(self.shape, self.tile):
            number, rest = divmod(length, size)
            of_axis = [Part(0, number, size)] if number else []
            parts.append(of_axis + ([Part(number * size, 1, rest)] if rest else []))
        return parts

    def to_tiles(self, x: Tensor, dim: int = 1) -> Tensor:
        """The tokens tile by tile, of those in raster order.

        Args:
            x: any tensor with `num_tokens` along `dim`, frame by frame, row by row.
            dim: the axis of the tokens.

        Raises:
            ValueError: that axis has another length.
        """
        dim = self._checked_dim(x, dim)
        video = x.unflatten(dim, self.shape)
        parts = [box.in_tiles(video, dim) for box in self.boxes()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def to_raster(self, x: Tensor, dim: int = 1) -> Tensor:
        """The inverse of `to_tiles`."""
        dim = self._checked_dim(x, dim)
        boxes = self.boxes()
        pieces = x.split([box.n_tokens for box in boxes], dim)
        parts = [box.in_raster(piece, dim) for box, piece in zip(boxes, pieces)]
        for axis in (2, 1, 0):  # boxes that differ along the width alone stand side by side
            number = len(self._parts()[axis])
            if number > 1:
                groups = [parts[i : i + number] for i in range(0, len(parts), number)]
                parts = [torch.cat(group, dim + axis) for group in groups]
        return parts[0].flatten(dim, dim + 2)

    def _checked_dim(self, x: Tensor, dim: int) -> int:
        if not -x.dim() <= dim < x.dim() or x.shape[dim] != self.num_tokens:
            raise ValueError(
                f"x must have {self.num_tokens} tokens ({self.frames} x {self.height} x {self.width}) along dim {dim}, "
                f"got shape {tuple(x.shape)}"
            )
        return dim % x.dim()

    def block_size(self) -> int:
        """The largest block, up to 128 tokens, of which a tile holds a whole number.

        Raises:
            ValueError: a tile is no multiple of 16 tokens.
        """
        volume = math.prod(self.tile)
        size = math.gcd(volume, 128)
        if size < 16:
            raise ValueError(
                f"tile must hold a multiple of 16 tokens, got {tuple(self.tile)} with {volume}; use e.g. (4, 4, 4), or pass "
                "block_size, so that blocks hold parts of several tiles"
            )
        return size

    def window_layout(
        self,
        window: Sequence[int] | Sequence[Sequence[int]],
        block_size: int | None = None,
        *,
        text_tokens: int = 0,
        device: torch.device | str | None = None,
    ) -> BlockLayout:
        """The layout of a window of tiles around each tile, for queries and keys in the order of `to_tiles`.

        A window that would pass the edge of the video is moved inside, so that every tile sees as many. A block sees the
        blocks of all tiles that one of its tokens sees: exactly the window where blocks hold no parts of several tiles.

        Args:
            window: tiles that a tile sees along the three axes, itself included, 1 or more; or such a triple for every head.
            block_size: tokens per block side, a power of two from 16 to 256. Default: the largest up to 128 that divides a
                tile.
            text_tokens: keys behind those of the video, which all queries see.
            device: where the lists are built and live, default the CPU.

        Returns:
            A layout for q_len `num_tokens` and kv_len ``num_tokens + text_tokens``, not causal.

        Raises:
            ValueError: an argument is out of range; the message names it.
            TypeError: an argument has the wrong type; the message names it.
        """
        size = self.block_size() if block_size is None else check_block_size(block_size)
        n_text, target = values.integer(text_tokens), checked_device(device)
        if n_text is None or not 0 <= n_text <= values.MAX_TOKENS - self.num_tokens:
            raise values.wrong(n_text, f"text_tokens must be 0 or more, got {values.shown(text_tokens)}")
        windows = checked_windows(window)
        grid = BlockGrid(self.num_tokens, self.num_tokens + n_text, size, False)
        with without_modes():  # a layout built in inference mode may be used in training later
            tiles = Tiles(self.num_tiles, self._tile_of_places(target))
            blocks = active_blocks_of_windows(tiles, windows, grid, n_text)
            return BlockLayout.from_blocks(grid, len(windows), *blocks)

    def _tile_of_places(self, device: torch.device) -> Tensor:
        """The tile of each token in tile order, counted in raster order; int64 (num_tokens,)."""
        of_axes = [torch.arange(length, device=device) // size for length, size in zip(self.shape, self.tile)]
        _, n_height, n_width = self.num_tiles
        frame, row, col = of_axes
        tile = (frame[:, None, None] * n_height + row[:, None]) * n_width + col
        return self.to_tiles(tile.flatten(), 0)


def checked_triple(name: str, given: Any, what: str) -> tuple[int, int, int]:
    """Three positive numbers, along frames, height and width."""
    found = tuple(map(values.tokens, values.items(given) or ()))
    if len(found) != 3 or None in found:
        raise values.wrong(
            values.integers(given),
            f"{name} must be three positive numbers of {what} (frames, height, width), got {values.shown(given)}",
        )
    return found  # type: ignore[return-value]


def checked_windows(given: Any) -> list[tuple[int, int, int]]:
    """A window of all heads, or one of each."""
    each = values.items(given) or ()
    if each and values.items(each[0]) is not None:
        return [checked_triple(f"window[{head}]", one, "tiles") for head, one in enumerate(each)]
    return [checked_triple("window", given, "tiles")]
