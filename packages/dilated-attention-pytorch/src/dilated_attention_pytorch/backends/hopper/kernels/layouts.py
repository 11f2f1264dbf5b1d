"""How tiles lie in registers and in shared memory."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Tiles of 16-bit numbers: products and the tensor memory accelerator read rows of 128 bytes, swizzled.
TILE_LAYOUT = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
FLAT_LAYOUT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.constexpr_function
def product_layout(columns):
    """Of a product (64, columns) of a warpgroup: a thread holds two rows, 8 apart, and every fourth pair of columns."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def word_layout(n_words):
    """Of the words (64, n_words) of a tile, a bit for every column: each of the four threads of a row holds all of its words."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1 << i] for i in range(n_words.bit_length() - 1)] + [[8, 0]],
        lane_bases=[[0, 0], [0, 0], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, n_words],
    )
