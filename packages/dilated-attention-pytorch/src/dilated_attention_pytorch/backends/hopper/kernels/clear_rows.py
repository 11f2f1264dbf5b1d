"""Rows of a streamed tile that belong to no token of the sequence: set to 0 before they meet in a sum.

Memory behind the end of a sequence may hold anything, and 0 times NaN is NaN. Both warpgroups may clear the same tile: they
write the same.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ..gluon_names import reinterpret

EIGHT_ROWS = gl.constexpr(gl.BlockedLayout([1, 4], [2, 16], [4, 1], [1, 0]))  # of a piece of 64 of head_dim


@gluon.jit
def in_eights(tiles):
    """The memory of tiles (stages, rows, head_dim) as pieces of 8 rows by 64: those of a piece of head_dim are adjacent."""
    N: gl.constexpr = tiles.shape[0] * tiles.shape[1] * tiles.shape[2] // 512
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return reinterpret(tiles, tiles.dtype, [N, 8, 64], LAYOUT)


@gluon.jit
def keep_rows(tiles, stage, begin, end):
    """Set the rows of tile `stage` before `begin` and from `end` on to 0, for asynchronous readers after the next barrier."""
    ROWS: gl.constexpr = tiles.shape[1]
    PIECES: gl.constexpr = tiles.shape[2] // 64
    eights = in_eights(tiles)
    lanes = gl.arange(0, 8, layout=gl.SliceLayout(1, EIGHT_ROWS))
    for i in range(ROWS // 8):
        if (i * 8 < begin) | (i * 8 + 8 > end):
            row = i * 8 + lanes
            keep = ((row >= begin) & (row < end))[:, None]
            for piece in gl.static_range(PIECES):
                eight = eights.index((stage * PIECES + piece) * (ROWS // 8) + i)
                eight.store(gl.where(keep, eight.load(EIGHT_ROWS), 0.0))
    fence_async_shared()


@gluon.jit
def keep_listed_rows(tiles, stage, words):
    """Set the rows of tile `stage` whose bits in `words` (rows / 32,) are 0 to 0, as `keep_rows` does."""
    ROWS: gl.constexpr = tiles.shape[1]
    PIECES: gl.constexpr = tiles.shape[2] // 64
    eights = in_eights(tiles)
    lanes = gl.arange(0, 8, layout=gl.SliceLayout(1, EIGHT_ROWS))
    places = gl.arange(0, ROWS // 32, layout=words.type.layout)
    for i in range(ROWS // 8):
        bits = (gl.sum(gl.where(places == i // 4, words, 0), 0) >> (i % 4 * 8)) & 255
        if bits != 255:
            keep = (((bits >> lanes) & 1) != 0)[:, None]
            for piece in gl.static_range(PIECES):
                eight = eights.index((stage * PIECES + piece) * (ROWS // 8) + i)
                eight.store(gl.where(keep, eight.load(EIGHT_ROWS), 0.0))
    fence_async_shared()
