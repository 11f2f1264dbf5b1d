"""The third warpgroup of the single pass (backward_single_pass.py): dq of what the two others leave in shared memory."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..gluon_names import aggregate, reinterpret
from .dq_sums import LINE, PIECE_LINES
from .layouts import TILE_LAYOUT
from .lse_delta import CHUNK
from .tile_scheduler import read_work_tile, release_work_tile, wait_work_tile

# The multiple of 512 nearest to $1 * $2, beside 2**32 * 1.35, and the rest, beside 2**23 * 1.5, are whole numbers in the last
# bits of float32; what else is in these bits cancels modulo 2**32. `cvt.rni.s32.f32` would take turns with the exponentials.
FIXED_POINT_OF = gl.constexpr("""{
    .reg .f32 high, from, low;
    .reg .b32 a, b;
    fma.rn.f32 high, $1, $2, 0f4FDA6000;
    sub.rn.f32 from, 0f4FDAC000, high;
    fma.rn.f32 low, $1, $2, from;
    mov.b32 a, high;
    mov.b32 b, low;
    shl.b32 a, a, 9;
    add.s32 $0, a, b;
}""")


@aggregate
class DsRing:
    """ds of a step, (keys, queries) in two tiles of 64 keys, for the third warpgroup; `done`: it has finished a column.

    At block size 64 the tiles of either warpgroup have barriers and places of their own.
    """

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    done: gl.shared_memory_descriptor


@gluon.jit
def fragments(x):
    """A tile of a product, (64, n), as a vector in the order in which threads hold it: 4 numbers of each after one another."""
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = x.shape[1]
    x = x.reshape([ROWS // 16, 2, 8, COLUMNS // 8, 4, 2]).permute([3, 0, 2, 4, 1, 5])
    return x.reshape([ROWS * COLUMNS])


@gluon.jit
def fixed_point(x, scales):
    """The nearest int32 of x * scales, which must not reach 2**30; anything for NaN."""
    x, scales = gl.broadcast(x, scales)
    return gl.inline_asm_elementwise(
        FIXED_POINT_OF, "=r,f,f", [x, scales], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def hand_over(sums, dq, n):
    """Write the n-th tile of dq for the warp that adds it."""
    DQ_TILES: gl.constexpr = sums.tiles.shape[0]
    mbarrier.wait(sums.empty.index(n % DQ_TILES), ((n // DQ_TILES) & 1) ^ 1)
    sums.tiles.index(n % DQ_TILES).store(fragments(dq).reshape([PIECE_LINES, LINE]))
    fence_async_shared()
    mbarrier.arrive(sums.full.index(n % DQ_TILES), count=1)


@gluon.jit
def dq_warpgroup(kept, ds_ring, sums, queue, lists, heads, grid, config, choices):
    """The third warpgroup: dq of every step, in one of two tiles of shared memory for the warp that adds it."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    SUB: gl.constexpr = config.BLOCK_SIZE // config.TILE
    PIECES: gl.constexpr = D // 64
    DS_STAGES: gl.constexpr = ds_ring.full.shape[0]
    layout: gl.constexpr = choices.dq_layout
    k_pieces = reinterpret(kept.qk, kept.qk.dtype, [SLOTS * 2 * PIECES, 64, 64], TILE_LAYOUT)
    m = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    n_tiles = grid.n_groups * heads.batched
    n_chunks = grid.n_rows * (config.BLOCK_SIZE // CHUNK)
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.middle
        first_head = work.batch_head % heads.num * heads.per_kv
        layout_head = first_head // heads.per_list
        if choices.FIXED_POINT:
            index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
        slot = (i_tile % SLOTS) * 2
        for w in gl.static_range(2):
            mbarrier.wait(kept.full.index(slot + w), (i_tile // SLOTS) & 1)
        for g in range(heads.per_kv):
            q_head = first_head + g
            if q_head // heads.per_list != layout_head:
                layout_head = q_head // heads.per_list
                offsets = lists.offsets + layout_head * grid.n_lists + work.group
                lo, hi = gl.load(offsets), gl.load(offsets + 1)
                if choices.FIXED_POINT:
                    index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
            first_query = (work.batch_head * heads.per_kv + g) * n_chunks * CHUNK
            for e in range(lo, hi):
                if choices.FIXED_POINT:
                    index_next = gl.load(lists.indices + gl.where(e + 1 < hi, e + 1, lo))
                for sub in gl.static_range(SUB):
                    place = it + sub
                    ds_stage = place % DS_STAGES
                    if choices.FIXED_POINT:  # they arrive while ds is waited for
                        query = first_query + (index * SUB + sub) * CHUNK
                        scales = gl.load(sums.scales + query + m)
                    mbarrier.wait(ds_ring.full.index(ds_stage), (place // DS_STAGES) & 1)
                    for piece in gl.static_range(PIECES):
                        dq = gl.zeros([64, 64], gl.float32, layout=layout)
                        for w in gl.static_range(2):
                            ds = ds_ring.tiles.index(ds_stage * 2 + w).permute([1, 0])
                            k_piece = k_pieces.index((slot + w) * PIECES + piece)
                            dq = warpgroup_mma(ds, k_piece, dq, use_acc=w > 0, is_async=True)
                        dq = warpgroup_mma_wait(0, deps=[dq])
                        if piece == PIECES - 1:
                            mbarrier.arrive(ds_ring.empty.index(ds_stage), count=1)
                        if choices.FIXED_POINT:
                            dq = fixed_point(dq, scales[:, None])
                        hand_over(sums, dq, place * PIECES + piece)
                it += SUB
                if choices.FIXED_POINT:
                    index = index_next
        mbarrier.arrive(ds_ring.done.index(i_tile % SLOTS), count=1)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)


@gluon.jit
def dq_of_two_columns(kept, ds_ring, sums, queue, lists, heads, grid, config, choices):
    """`dq_warpgroup` of block size 64: the blocks of two columns, each in the first, in the second or in both."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    PIECES: gl.constexpr = D // 64
    DS_STAGES: gl.constexpr = ds_ring.tiles.shape[0] // 2
    layout: gl.constexpr = choices.dq_layout
    k_pieces = reinterpret(kept.qk, kept.qk.dtype, [SLOTS * 2 * PIECES, 64, 64], TILE_LAYOUT)
    n_tiles = grid.n_groups * heads.batched
    n_first, n_second = 0, 0  # steps of either column
    n_pieces = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, middle = work.lo, work.middle
        first_head = work.batch_head % heads.num * heads.per_kv
        layout_head = first_head // heads.per_list
        slot = (i_tile % SLOTS) * 2
        for w in gl.static_range(2):
            mbarrier.wait(kept.full.index(slot + w), (i_tile // SLOTS) & 1)
        for g in range(heads.per_kv):
            q_head = first_head + g
            if q_head // heads.per_list != layout_head:
                layout_head = q_head // heads.per_list
                offsets = lists.offsets + layout_head * grid.n_lists + work.group * 2
                lo, middle = gl.load(offsets), gl.load(offsets + 1)
            n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
            of_first = lo
            row_of_first = gl.load(lists.indices + of_first, mask=of_first < middle, other=-1)
            entry = gl.load(lists.entries + lo, mask=n_places > 0, other=0)
            for i in range(n_places):
                index, is_shared = entry >> 1, (entry & 1) != 0
                is_first = index == row_of_first
                # of the next block: they arrive while ds is waited for
                of_first += is_first.to(gl.int32)
                row_of_first = gl.load(lists.indices + of_first, mask=of_first < middle, other=-1)
                entry = gl.load(lists.entries + lo + gl.minimum(i + 1, n_places - 1))
                which = gl.where(is_first, 0, 1)
                n = gl.where(is_first, n_first, n_second)
                ds = n % DS_STAGES * 2 + which
                ds_of_second = n_second % DS_STAGES * 2 + 1
                mbarrier.wait(ds_ring.full.index(ds), (n // DS_STAGES) & 1)
                if is_shared:
                    mbarrier.wait(ds_ring.full.index(ds_of_second), (n_second // DS_STAGES) & 1)
                for piece in gl.static_range(PIECES):
                    dq = gl.zeros([64, 64], gl.float32, layout=layout)
                    k_piece = k_pieces.index((slot + which) * PIECES + piece)
                    ds_tile = ds_ring.tiles.index(ds).permute([1, 0])
                    dq = warpgroup_mma(ds_tile, k_piece, dq, use_acc=False, is_async=True)
                    dq = warpgroup_mma_wait(0, deps=[dq])
                    if is_shared:
                        k_piece = k_pieces.index((slot + 1) * PIECES + piece)
                        ds_tile = ds_ring.tiles.index(ds_of_second).permute([1, 0])
                        dq = warpgroup_mma(ds_tile, k_piece, dq, is_async=True)
                        dq = warpgroup_mma_wait(0, deps=[dq])
                    if piece == PIECES - 1:
                        mbarrier.arrive(ds_ring.empty.index(ds), count=1)
                        mbarrier.arrive(ds_ring.empty.index(ds_of_second), count=1, pred=is_shared)
                    hand_over(sums, dq, n_pieces + piece)
                n_pieces += PIECES
                n_first += is_first.to(gl.int32)
                n_second += (is_shared | (is_first == 0)).to(gl.int32)
        mbarrier.arrive(ds_ring.done.index(i_tile % SLOTS), count=1)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)


@gluon.jit
def third_warpgroup(kept, ds_ring, sums, queue, lists, heads, grid, config, choices):
    """dq of every step, for the warp that adds it."""
    if config.BLOCK_SIZE == 64:
        dq_of_two_columns(kept, ds_ring, sums, queue, lists, heads, grid, config, choices)
    else:
        dq_warpgroup(kept, ds_ring, sums, queue, lists, heads, grid, config, choices)
