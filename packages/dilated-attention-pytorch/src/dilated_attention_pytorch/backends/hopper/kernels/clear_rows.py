"""Rows of a streamed tile that belong to no token of the sequence: set to 0 before they meet in a sum.

Memory behind the end of a sequence may hold anything, and 0 times NaN is NaN. Both warpgroups may clear the same tile: they
write the same, and read nothing of it. Tiles come with their tails (tma.py), or None.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ..gluon_names import reinterpret
from .layouts import FLAT_LAYOUT
from .tma import opaque

# A piece of 64 of head_dim of a row is 128 bytes, in which a swizzle only moves 16 by 16: all of them become 0.
PIECE = gl.constexpr(64)
EIGHT_ROWS = gl.constexpr(512)


@gluon.jit
def rolled(i):
    """Return the index of a loop, which ptxas then does not unroll: it stands in a branch of the loop over the tiles."""
    return gl.inline_asm_elementwise(
        '.pragma "nounroll"; mov.b32 $0, $1;', "=r,r", [i], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def units_of(tiles, UNIT: gl.constexpr):
    """Tiles as rows, or groups of rows, of pieces of 64 columns."""
    N_UNITS: gl.constexpr = tiles.shape[0] * tiles.shape[1] * tiles.shape[2] // UNIT
    return reinterpret(tiles, tiles.dtype, [N_UNITS, UNIT], FLAT_LAYOUT)


@gluon.jit
def clear_units(tiles, tails, stage, begin, end, UNIT: gl.constexpr):
    """Set rows to 0 in units of UNIT numbers, a row or eight of them: those from `begin` to `end`, counted in units."""
    PIECES: gl.constexpr = tiles.shape[2] // PIECE
    UNITS: gl.constexpr = tiles.shape[1] * PIECE // UNIT  # of a piece of a tile
    LAYOUT: gl.constexpr = gl.BlockedLayout([2 if UNIT == PIECE else 4], [32], [4], [0])
    units = units_of(tiles, UNIT)
    for place in range(begin, end):
        i = rolled(place)
        for piece in gl.static_range(PIECES):
            units.index((stage * PIECES + piece) * UNITS + i).store(
                gl.zeros([UNIT], tiles.dtype, layout=LAYOUT)
            )
        if tails is not None:
            units_of(tails, UNIT).index(stage * UNITS + i).store(gl.zeros([UNIT], tiles.dtype, layout=LAYOUT))


@gluon.jit
def keep_rows(tiles, tails, stage, begin, end):
    """Set the rows of tile `stage` before `begin` and from `end` on to 0, for asynchronous readers after the next barrier."""
    ROWS: gl.constexpr = tiles.shape[1]
    begin = gl.minimum(gl.maximum(begin, 0), ROWS)
    end = gl.minimum(gl.maximum(end, 0), ROWS)
    whole = (end + 7) // 8
    clear_units(tiles, tails, stage, 0, begin // 8, EIGHT_ROWS)
    clear_units(tiles, tails, stage, begin // 8 * 8, begin, PIECE)
    clear_units(tiles, tails, stage, end, whole * 8, PIECE)
    clear_units(tiles, tails, stage, whole, ROWS // 8, EIGHT_ROWS)
    fence_async_shared()


@gluon.jit
def keep_listed_rows(tiles, tails, stage, words):
    """Set the rows of tile `stage` whose bits in `words` (rows / 32,) are 0 to 0, as `keep_rows` does."""
    ROWS: gl.constexpr = tiles.shape[1]
    places = gl.arange(0, ROWS // 32, layout=words.type.layout)
    for i in range(opaque(gl.to_tensor(ROWS // 8))):  # not unrolled: it stands in the loop over the tiles
        bits = (gl.sum(gl.where(places == i // 4, words, 0), 0) >> (i % 4 * 8)) & 255
        if bits == 0:
            clear_units(tiles, tails, stage, i, i + 1, EIGHT_ROWS)
        elif bits != 255:
            for row in range(opaque(gl.to_tensor(8))):
                is_hidden = ((bits >> row) & 1) ^ 1
                clear_units(tiles, tails, stage, i * 8 + row, i * 8 + row + is_hidden, PIECE)
    fence_async_shared()
