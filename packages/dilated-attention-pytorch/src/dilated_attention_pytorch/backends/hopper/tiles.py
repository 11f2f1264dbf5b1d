"""Tiles of tokens between global and shared memory, in pieces of 64 of head_dim: the width of a 128-byte swizzle.

The boxes of a descriptor are [1, 1, tokens, 64]; those of a tile lie one after the other.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def load_tokens(desc, boxes, full, i, i_batch, head, token, TOKENS: gl.constexpr, D: gl.constexpr):
    """Begin to fill tile i; `full` tells when it is there."""
    mbarrier.expect(full, TOKENS * D * 2)
    for piece in gl.static_range(D // 64):
        box = boxes.index(i * (D // 64) + piece)
        tma.async_copy_global_to_shared(desc, [i_batch, head, token, piece * 64], full, box)


@gluon.jit
def store_tokens(desc, boxes, i, i_batch, head, token, D: gl.constexpr):
    """Begin to store tile i, which the fence for asynchronous readers came after."""
    for piece in gl.static_range(D // 64):
        box = boxes.index(i * (D // 64) + piece)
        tma.async_copy_shared_to_global(desc, [i_batch, head, token, piece * 64], box)
