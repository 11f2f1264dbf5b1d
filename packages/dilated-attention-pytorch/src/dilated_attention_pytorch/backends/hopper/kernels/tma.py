"""Copies of tiles between global and shared memory, in pieces of 64 of head_dim: the width of a 128-byte swizzle.

The boxes of a descriptor are [1, 1, tokens, 64], or with token dilation [1, 1, tokens of a residue, 1, 64]; the boxes of a
tile are adjacent in shared memory. A tile of 192 columns is two, as the sizes of a tile are powers of two: the first D = 128
columns, and its tail, the last 64. Where a tail is None, there is none.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..gluon_names import aggregate, async_atomic_add, async_load, async_store, reinterpret


@gluon.jit
def opaque(number):
    """Return `number`, hidden from the optimiser, so that values derived from it are recomputed here instead of being kept in registers."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def kept_tile(tiles, slot):
    """The tile in a slot, as the operand of a product; ask again for every loop.

    ptxas 12.8 shares the address between two loops but computes it behind the branch around the first.
    """
    return tiles.index(opaque(slot))


@aggregate
class Boxes:
    """Tiles as the boxes of a descriptor, and their tails or None."""

    main: gl.shared_memory_descriptor
    tails: gl.shared_memory_descriptor | gl.constexpr


@gluon.jit
def boxes_of(desc, tiles, tails):
    """Tiles of tokens as boxes."""
    N_TILES: gl.constexpr = tiles.shape[0]
    TOKENS: gl.constexpr = tiles.shape[1]
    PIECES: gl.constexpr = tiles.shape[2] // 64
    main = reinterpret(tiles, desc.dtype, [N_TILES * PIECES, 1, 1, TOKENS, 64], desc.layout)
    if tails is None:
        return Boxes(main, None)
    else:
        return Boxes(main, reinterpret(tails, desc.dtype, [N_TILES, 1, 1, TOKENS, 64], desc.layout))


@gluon.jit
def load_tokens(
    desc, boxes, full, i, i_batch, head, token, TOKENS: gl.constexpr, D: gl.constexpr, COLUMNS: gl.constexpr = None, tails=None
):  # fmt: skip
    """Start loading TOKENS tokens into tile i, D columns or the first COLUMNS; `full` completes when they have arrived."""
    PIECES: gl.constexpr = D // 64 if COLUMNS is None else (COLUMNS + 63) // 64
    mbarrier.expect(full, TOKENS * PIECES * 128)
    for piece in gl.static_range(PIECES):
        if piece < D // 64:
            box = boxes.index(i * (D // 64) + piece)
        else:
            box = tails.index(i)
        async_load(desc, [i_batch, head, token, piece * 64], full, box)


@gluon.jit
def store_tokens(
    desc, boxes, i, i_batch, head, token, D: gl.constexpr, COLUMNS: gl.constexpr = None, tails=None
):
    """Start storing tile i, or its first COLUMNS; it must have been written before a fence for asynchronous readers."""
    for piece in gl.static_range(D // 64 if COLUMNS is None else (COLUMNS + 63) // 64):
        if piece < D // 64:
            box = boxes.index(i * (D // 64) + piece)
        else:
            box = tails.index(i)
        async_store(desc, [i_batch, head, token, piece * 64], box)


@gluon.jit
def add_tokens(desc, boxes, i, i_batch, head, token, D: gl.constexpr):
    """As `store_tokens`, but adds to what is there, rounding every sum."""
    for piece in gl.static_range(D // 64):
        async_atomic_add(desc, [i_batch, head, token, piece * 64], boxes.index(i * (D // 64) + piece))


@gluon.jit
def release_stored(empty, W: gl.constexpr, SLOTS: gl.constexpr):
    """With one slot: wait until the store from the slot of warpgroup W has read it, then release the slot."""
    if SLOTS == 1:
        tma.store_wait(0)
        mbarrier.arrive(empty.index(W), count=1)


@gluon.jit
def release_stored_before(empty, i_tile, W: gl.constexpr, SLOTS: gl.constexpr):
    """With several slots: the same for the slot of the tile before i_tile, while tile i_tile starts."""
    if SLOTS > 1:
        tma.store_wait(0)
        mbarrier.arrive(empty.index(((i_tile + SLOTS - 1) % SLOTS) * 2 + W), count=1, pred=i_tile > 0)


@gluon.jit
def load_box(
    desc, boxes, bar, i, i_batch, kv_head, residue, first, D: gl.constexpr, JOIN: gl.constexpr, COLUMNS: gl.constexpr = None,
    tails=None,
):  # fmt: skip
    """Start loading the kept keys of one block, D columns or the first COLUMNS, into box i of a tile of JOIN boxes."""
    for piece in gl.static_range(D // 64 if COLUMNS is None else (COLUMNS + 63) // 64):
        if piece < D // 64:
            box = boxes.index((i // JOIN * (D // 64) + piece) * JOIN + i % JOIN)
        else:
            box = tails.index(i)
        async_load(desc, [i_batch, kv_head, first, residue, piece * 64], bar, box)


@gluon.jit
def store_box(desc, boxes, i, i_batch, kv_head, residue, first, D: gl.constexpr, JOIN: gl.constexpr):
    """Start storing box i of a tile of JOIN boxes."""
    for piece in gl.static_range(D // 64):
        box = boxes.index((i // JOIN * (D // 64) + piece) * JOIN + i % JOIN)
        async_store(desc, [i_batch, kv_head, first, residue, piece * 64], box)
