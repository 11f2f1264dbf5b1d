"""What the passes of the backward share: a step, and the shared memory; see backward.py, and dilated_rows.py and dilated_columns.py."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..gluon_names import DELTA_FIRST
from .attend import scores
from .lse_delta import CHUNK
from .pipeline import get_tile, give_back
from .tile_scheduler import tile_barriers

BLOCK = gl.constexpr(128)  # tokens, where keys are dilated


@gluon.jit
def load_stats(stats, entry, sub, TILE: gl.constexpr, SUB: gl.constexpr, PAIRED: gl.constexpr):
    """lse and -delta of the queries of a step of one head; of any where the entry is below 0."""
    lanes: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    row = gl.maximum(entry, 0)
    if PAIRED:
        row = row >> 1
    m = gl.arange(0, TILE, layout=lanes)
    ptrs = stats + (row * SUB + sub) * (2 * TILE) + (m // CHUNK) * (2 * CHUNK) + m % CHUNK
    return gl.load(ptrs), gl.load(ptrs + CHUNK)


@gluon.jit
def in_every_row(x, TILE: gl.constexpr, layout: gl.constexpr):
    """(64, TILE) registers with x, (TILE,), in every row; made here, so that a product may begin with them while another runs.

    Copied between the two products they would make ptxas wait for the first (C7517).
    """
    x, _ = gl.broadcast(x[None, :], gl.zeros([64, TILE], gl.float32, layout=layout))
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def step(
    sum_x, sum_y, a, b, x_ring, y_ring, stats, lse, delta, place, HIDE: gl.constexpr, seen, scale_log2,
    COLUMNS: gl.constexpr, s_layout: gl.constexpr, sum_layout: gl.constexpr, LATE: gl.constexpr = False,
    FIRST: gl.constexpr = True, LAST: gl.constexpr = True,
):  # fmt: skip
    """Add what the tile at a place gives; HIDE(p, seen, layout) makes p 0 where a query may not see the key.

    The sums of all but the LAST step are in flight on return, and waited for when the next one, not FIRST, has begun. Not
    so after the last: ptxas serialises all products of a loop over whose closing one of them runs.
    """
    operand: gl.constexpr = gl.DotOperandLayout(0, sum_layout, 2)
    dtype: gl.constexpr = a.dtype
    lse_smem, delta_smem = stats
    STAGES: gl.constexpr = x_ring[0].shape[0]
    TILE: gl.constexpr = x_ring[0].shape[1]
    x_tile = get_tile(x_ring, place)
    if COLUMNS and not LATE:  # before the products: shared memory is read in the order of the instructions
        lse = lse_smem.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
    if COLUMNS and DELTA_FIRST:
        delta = in_every_row(
            delta_smem.index(place % STAGES).load(gl.SliceLayout(0, s_layout)), TILE, s_layout
        )
    s = scores(a, x_tile, TILE, s_layout)
    if not FIRST:
        if COLUMNS:
            sum_x, sum_y = warpgroup_mma_wait(1, deps=[sum_x, sum_y])
        else:
            sum_x = warpgroup_mma_wait(1, deps=[sum_x])
        give_back(x_ring, place - 1)  # and y: they have one barrier
    y_tile = get_tile(y_ring, place)
    if COLUMNS and DELTA_FIRST:
        dp = warpgroup_mma(b, y_tile.permute([1, 0]), delta, is_async=True)
    else:
        dp = scores(b, y_tile, TILE, s_layout)
    if COLUMNS and LATE:
        lse = lse_smem.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
    s = warpgroup_mma_wait(1, deps=[s])
    if COLUMNS:
        p = gl.exp2(s * scale_log2 - lse[None, :])
    else:
        p = gl.exp2(s * scale_log2 - lse[:, None])
    p = HIDE(p, seen, s_layout)
    if COLUMNS:
        if not DELTA_FIRST:
            delta = delta_smem.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
        sum_y = warpgroup_mma(gl.convert_layout(p.to(dtype), operand), y_tile, sum_y, is_async=True)
        dp = warpgroup_mma_wait(1, deps=[dp])
        if not DELTA_FIRST:
            dp += delta[None, :]
        ds = p * dp
    else:
        dp = warpgroup_mma_wait(0, deps=[dp])
        ds = p * (dp + delta[:, None])
    sum_x = warpgroup_mma(gl.convert_layout(ds.to(dtype), operand), x_tile, sum_x, is_async=True)
    if LAST:
        if COLUMNS:
            sum_x, sum_y = warpgroup_mma_wait(0, deps=[sum_x, sum_y])
        else:
            sum_x = warpgroup_mma_wait(0, deps=[sum_x])
        give_back(x_ring, place)
    return sum_x, sum_y


@gluon.jit
def shared_memory(
    dtype: gl.constexpr, D: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr, FULLS: gl.constexpr,
    COLUMNS: gl.constexpr,
):  # fmt: skip
    """Places for tiles, lse, delta and what is told of a tile, and the barriers, ready: FULLS tell when a stage is full (ring.py)."""
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    STATS_STAGES: gl.constexpr = STAGES if COLUMNS else 1
    a_smem = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D], tile_layout)
    b_smem = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D], tile_layout)
    x_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, D], tile_layout)
    y_smem = gl.allocate_shared_memory(dtype, [STAGES, TILE, D], tile_layout)
    lse_smem = gl.allocate_shared_memory(gl.float32, [STATS_STAGES, TILE], flat)
    delta_smem = gl.allocate_shared_memory(gl.float32, [STATS_STAGES, TILE], flat)
    tile_smem, tile_bars = tile_barriers()
    own_full = gl.allocate_shared_memory(gl.int64, [SLOTS * 2, 1], mbarrier.MBarrierLayout())
    own_empty = gl.allocate_shared_memory(gl.int64, [SLOTS * 2, 1], mbarrier.MBarrierLayout())
    x_full = gl.allocate_shared_memory(gl.int64, [FULLS, 1], mbarrier.MBarrierLayout())
    y_full = gl.allocate_shared_memory(gl.int64, [FULLS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS * 2):
        mbarrier.init(own_full.index(i), count=2)  # a, b
        mbarrier.init(own_empty.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(FULLS):
        mbarrier.init(x_full.index(i), count=2 if COLUMNS else 1)  # x; lse and delta
        mbarrier.init(y_full.index(i), count=1)
    fence_async_shared()
    bars = own_full, own_empty, x_full, y_full, empty, tile_bars
    return (a_smem, b_smem, x_smem, y_smem), lse_smem, delta_smem, tile_smem, bars
