"""Tiles of tokens between global and shared memory, in pieces of 64 of head_dim: the width of a 128-byte swizzle.

The boxes of a descriptor are [1, 1, tokens, 64], or, with token dilation, [1, 1, tokens of a residue, 1, 64]; those of a
tile lie one after the other.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..gluon_names import async_load, async_store


@gluon.jit
def here(number):
    """The same number, not known before this place: what follows from it is computed here, not kept in registers."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def kept_tile(kept):
    """The tile of (shared memory, slot) for a product; ask anew for every loop.

    ptxas 12.8 computes the address of a tile once for two loops, but behind the branch around the first of them.
    """
    tiles, slot = kept
    return tiles.index(here(slot))


@gluon.jit
def load_tokens(desc, boxes, full, i, i_batch, head, token, TOKENS: gl.constexpr, D: gl.constexpr):
    """Begin to fill tile i; `full` tells when it is there."""
    mbarrier.expect(full, TOKENS * D * 2)
    for piece in gl.static_range(D // 64):
        box = boxes.index(i * (D // 64) + piece)
        async_load(desc, [i_batch, head, token, piece * 64], full, box)


@gluon.jit
def store_tokens(desc, boxes, i, i_batch, head, token, D: gl.constexpr):
    """Begin to store tile i, which the fence for asynchronous readers came after."""
    for piece in gl.static_range(D // 64):
        box = boxes.index(i * (D // 64) + piece)
        async_store(desc, [i_batch, head, token, piece * 64], box)


@gluon.jit
def stored(empty, W: gl.constexpr, SLOTS: gl.constexpr):
    """With one slot: wait for what was stored from the slot of warpgroup W, and give the slot back."""
    if SLOTS == 1:
        tma.store_wait(0)
        mbarrier.arrive(empty.index(W), count=1)


@gluon.jit
def stored_before(empty, i_tile, W: gl.constexpr, SLOTS: gl.constexpr):
    """With several slots the same for the tile before i_tile, while this one begins."""
    if SLOTS > 1:
        tma.store_wait(0)
        mbarrier.arrive(empty.index(((i_tile + SLOTS - 1) % SLOTS) * 2 + W), count=1, pred=i_tile > 0)


@gluon.jit
def load_box(desc, boxes, bar, i, i_batch, kv_head, residue, first, D: gl.constexpr, JOIN: gl.constexpr):
    """Kept keys of one block into box i of a tile, in pieces of 64 of head_dim (the width of a 128-byte swizzle)."""
    for piece in gl.static_range(D // 64):
        box = boxes.index((i // JOIN * (D // 64) + piece) * JOIN + i % JOIN)
        async_load(desc, [i_batch, kv_head, first, residue, piece * 64], bar, box)


@gluon.jit
def store_box(desc, boxes, i, i_batch, kv_head, residue, first, D: gl.constexpr, JOIN: gl.constexpr):
    """Begin to store box i of a tile, as `load_box` fills it."""
    for piece in gl.static_range(D // 64):
        box = boxes.index((i // JOIN * (D // 64) + piece) * JOIN + i % JOIN)
        async_store(desc, [i_batch, kv_head, first, residue, piece * 64], box)
