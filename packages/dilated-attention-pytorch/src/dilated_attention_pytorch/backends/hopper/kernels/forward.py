"""Forward kernel for Hopper: a persistent, warp-specialised FlashAttention-3 whose next key tile comes from a list.

    one warp       takes tiles of 128 queries from a counter and tells the others of them (schedule.py);
    one warp       walks the block lists of the tiles and issues the TMA loads, those of the next tile while the
                   warpgroups are at this one;
    two warpgroups compute 64 queries each, tile after tile of keys, in one of the orders of attend.py.
(Shah et al., FlashAttention-3, arXiv:2407.08608, for warps that copy beside warpgroups that compute.)
At block size 128 both warpgroups have the same list. At block size 64 each has a row of its own; a key block that
both rows see is loaded once: the producer walks the union of the two lists, `Places` says where in it an entry is.
Token dilation: a tile of keys is joined from the kept keys of several entries; dropped keys are never loaded.
A tile of keys may also be a part of a block: where two programs share a multiprocessor, whole ones do not fit.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)

from ..gluon_names import reinterpret
from .attend import LOG2E, attend, entries_of_list
from .pipeline import LAPS, full_at
from .softmax import INFINITY, by_row, nothing_seen
from .tile_scheduler import (
    parts_of_schedule,
    shared_tile,
    take_tiles,
    tile_barriers,
    tile_place,
    told,
    told_numbers,
    was_told,
)
from .tma import load_box, load_tokens, store_tokens, stored, stored_before

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def load_tile(
    desc, boxes, ring, Columns, e, hi, column, part, n_cols, it, one_only, i_batch, kv_head, residue, KEYS: gl.constexpr,
    BOX: gl.constexpr, D: gl.constexpr, JOIN: gl.constexpr,
):  # fmt: skip
    """Fill a place in the ring of k or v, when it is given back, with a part of an entry, or with the entries from e on."""
    tiles, full, empty = ring
    STAGES: gl.constexpr = tiles.shape[0]
    stage = it % STAGES
    mbarrier.wait(empty.index(stage), ((it // STAGES) & 1) ^ 1)
    mbarrier.arrive(empty.index(stage), count=1, pred=one_only)
    bar = full_at(full, it)
    mbarrier.expect(bar, BOX * JOIN * D * 2)
    load_box(desc, boxes, bar, stage * JOIN, i_batch, kv_head, residue, column * KEYS + part * BOX, D, JOIN)
    for j in gl.static_range(1, JOIN):
        # past the end of the list a box lies outside of the tensor: zeros, and no traffic
        other = gl.load(Columns + e + j, mask=e + j < hi, other=n_cols)
        load_box(desc, boxes, bar, stage * JOIN + j, i_batch, kv_head, residue, other * KEYS, D, JOIN)


@gluon.jit
def produce_list(
    desc_k, desc_v, k_ring, v_ring, Columns, lo, hi, it, i_batch, kv_head, head, n_cols, D: gl.constexpr,
    BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr,
):  # fmt: skip
    """Load the tiles of a list; returns the next place in the ring."""
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    BOX: gl.constexpr = KEYS if KEYS < BLOCK_N else BLOCK_N
    JOIN: gl.constexpr = BLOCK_N // BOX
    K_BOXES: gl.constexpr = k_ring[0].shape[0] * (D // 64) * JOIN
    V_BOXES: gl.constexpr = v_ring[0].shape[0] * (D // 64) * JOIN
    k_boxes = reinterpret(k_ring[0], desc_k.dtype, [K_BOXES, 1, 1, BOX, 1, 64], desc_k.layout)
    v_boxes = reinterpret(v_ring[0], desc_v.dtype, [V_BOXES, 1, 1, BOX, 1, 64], desc_v.layout)
    residue = head % RATE
    for e in range(lo, hi, JOIN):
        column = gl.load(Columns + e)
        if column >= 0:  # below 0 (block size 64 only): the same block as the entry before
            one_only = False
            if PAIRED:
                one_only = (column & 1) == 0
                column = column >> 1
            for part in gl.static_range(KEYS // BOX):
                load_tile(
                    desc_k, k_boxes, k_ring, Columns, e, hi, column, part, n_cols, it, one_only, i_batch, kv_head, residue,
                    KEYS, BOX, D, JOIN,
                )  # fmt: skip
                load_tile(
                    desc_v, v_boxes, v_ring, Columns, e, hi, column, part, n_cols, it, one_only, i_batch, kv_head, residue,
                    KEYS, BOX, D, JOIN,
                )  # fmt: skip
                it += 1
    return it


@gluon.jit
def producer(
    desc_q, desc_k, desc_v, desc_k_far, desc_v_far, q_smem, k_ring, v_ring, tile_smem, bars, Columns, n_tiles, num_heads,
    first_row, q_offset, kv_len, heads_per_kv, D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Loads q, k and v of the tiles."""
    q_full, q_empty, tile_bars = bars
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    ROWS: gl.constexpr = 2 if PAIRED else 1
    q_boxes = reinterpret(q_smem, desc_q.dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_q.layout)
    n_cols = gl.cdiv(kv_len, BLOCK_SIZE)
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, lo, middle, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        query0 = (first_row + group * ROWS) * BLOCK_SIZE - q_offset
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            mbarrier.wait(q_empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            load_tokens(desc_q, q_boxes, q_full.index(slot), slot, i_batch, head, query0 + w * 64, 64, D)
        end = hi if PAIRED else middle
        it = produce_list(
            desc_k, desc_v, k_ring, v_ring, Columns, lo, end, it, i_batch, head // heads_per_kv, head, n_cols, D, BLOCK_N,
            BLOCK_SIZE, RATE, PAIRED,
        )  # fmt: skip
        if N_CLASSES == 2:
            it = produce_list(
                desc_k_far, desc_v_far, k_ring, v_ring, Columns, middle, hi, it, i_batch, head // heads_per_kv, head,
                n_cols, D, BLOCK_N, BLOCK_SIZE, FAR_RATE, PAIRED,
            )  # fmt: skip
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)


@gluon.jit
def lists_of_tile(tile, problem):
    """What is told of a tile (schedule.py)."""
    Offsets, Indices, Order, heads, n_groups, n_rows, first_row, kv_len = problem[:8]
    BLOCK_SIZE: gl.constexpr = problem[8]
    N_CLASSES: gl.constexpr = problem[9]
    IS_CAUSAL: gl.constexpr = problem[10]
    EVEN_KV: gl.constexpr = problem[11]
    num_heads, n_batch_heads, heads_per_kv, heads_per_list = heads
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    ROWS: gl.constexpr = 2 if PAIRED else 1
    batch_head, group = tile_place(
        Order, tile, n_groups, n_batch_heads, num_heads, heads_per_list, 1, heads_per_kv
    )
    row = group * ROWS
    # the lists of the tile: of two rows, or of the classes of one
    lists = Offsets + (((batch_head % num_heads) // heads_per_list) * n_rows + row) * N_CLASSES
    n_lists = N_CLASSES
    if PAIRED:
        n_lists = gl.minimum(2, n_rows - row)
    lo, middle, hi = gl.load(lists), gl.load(lists + 1), gl.load(lists + n_lists)
    numbers = (batch_head, group, lo, middle, hi)
    if IS_CAUSAL or not EVEN_KV:
        row += first_row
        counts = entries_of_list(Indices, lo, middle, row, kv_len, BLOCK_SIZE, IS_CAUSAL)
        if PAIRED:
            row += 1
        numbers += counts + entries_of_list(Indices, middle, hi, row, kv_len, BLOCK_SIZE, IS_CAUSAL)
    return numbers


@gluon.jit
def consumer(
    W: gl.constexpr, desc_out, q_smem, k_ring, v_ring, tile_smem, bars, Indices, Places, Unions, Lse, n_groups, n_tiles,
    num_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list, D: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, SLOTS: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, ORDER: gl.constexpr, UNROLL: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: queries W * 64 to W * 64 + 63 of every tile."""
    q_full, q_empty, tile_bars = bars
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    ROWS: gl.constexpr = 2 if PAIRED else 1
    dtype: gl.constexpr = q_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    out_boxes = reinterpret(q_smem, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_out.layout)
    it = 0
    last = -1
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, lo, middle, hi = told_numbers(tile_smem, i_tile)
        visible, visible_2 = middle - lo, hi - middle
        whole, whole_2 = visible, visible_2
        if IS_CAUSAL or not EVEN_KV:
            visible, whole = told(tile_smem, i_tile, 6), told(tile_smem, i_tile, 7)
            visible_2, whole_2 = told(tile_smem, i_tile, 8), told(tile_smem, i_tile, 9)
        was_told(tile_bars, i_tile)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        row = group * ROWS
        if PAIRED:
            position0 = (first_row + row + W) * BLOCK_SIZE
        else:
            position0 = (first_row + row) * BLOCK_SIZE + W * 64
        position = position0 + gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
        m, l = nothing_seen()
        sums = gl.zeros([64, D], gl.float32, layout=acc_layout), m, l
        stored_before(q_empty, i_tile, W, SLOTS)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(q_full.index(slot), (i_tile // SLOTS) & 1)
        q = q_smem, slot
        if PAIRED:
            # q of this tile was asked for after all places before `it`, so those a lap of stages back were filled
            last = gl.maximum(last, it - 1 - k_ring[0].shape[0])
            if W == 1:
                lo, middle, visible, whole = middle, hi, visible_2, whole_2
            sums, last = attend(
                q, k_ring, v_ring, Indices, Places, lo, middle, visible, whole, sums, it, last, position, head, kv_len, scale_log2,
                BLOCK_N, BLOCK_SIZE, 1, True, IS_CAUSAL, EVEN_KV, ORDER, UNROLL, s_layout, acc_layout,
            )  # fmt: skip
            it += gl.load(Unions + (head // heads_per_list) * n_groups + group)
        else:
            sums, _ = attend(
                q, k_ring, v_ring, Indices, Indices, lo, middle, visible, whole, sums, it, it - 1, position, head, kv_len, scale_log2,
                BLOCK_N, BLOCK_SIZE, RATE, False, IS_CAUSAL, EVEN_KV, ORDER, UNROLL, s_layout, acc_layout,
            )  # fmt: skip
            it += gl.cdiv((middle - lo) * (BLOCK_SIZE // RATE), BLOCK_N)
            if N_CLASSES == 2:
                sums, _ = attend(
                    q, k_ring, v_ring, Indices, Indices, middle, hi, visible_2, whole_2, sums, it, it - 1, position, head, kv_len,
                    scale_log2, BLOCK_N, BLOCK_SIZE, FAR_RATE, False, IS_CAUSAL, EVEN_KV, ORDER, UNROLL, s_layout, acc_layout,
                )  # fmt: skip
                it += gl.cdiv((hi - middle) * (BLOCK_SIZE // FAR_RATE), BLOCK_N)

        acc, m, l = sums
        m, l = by_row(m, l, s_layout)
        empty = l == 0.0
        l = gl.where(empty, 1.0, l)
        lse = gl.where(empty, -INFINITY, (m + gl.log2(l)) * LN2)
        query = position - q_offset
        gl.store(Lse + batch_head.to(gl.int64) * q_len + query, lse, mask=(query >= 0) & (query < q_len))
        q_smem.index(slot).store(
            (acc * gl.convert_layout(1.0 / l, gl.SliceLayout(1, acc_layout))[:, None]).to(dtype)
        )  # q is no longer needed
        fence_async_shared()
        store_tokens(desc_out, out_boxes, slot, i_batch, head, position0 - q_offset, D)
        stored(q_empty, W, SLOTS)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_layout_groups", "n_entries", "n_groups", "n_rows", "num_heads", "n_batch_heads", "first_row", "q_offset", "q_len",
    "kv_len", "heads_per_kv", "heads_per_list",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def forward_kernel(
    desc_q, desc_k, desc_v, desc_k_far, desc_v_far, desc_out, Lse, Offsets, Indices, Schedule, Counter,
    n_layout_groups, n_entries, n_groups, n_rows, num_heads, n_batch_heads, first_row, q_offset, q_len, kv_len,
    heads_per_kv, heads_per_list, softmax_scale, D: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, SLOTS: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    ORDER: gl.constexpr, UNROLL: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    dtype: gl.constexpr = desc_q.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    laps: gl.constexpr = LAPS if BLOCK_SIZE == 64 else 1
    q_smem = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D], tile_layout)
    k_smem = gl.allocate_shared_memory(dtype, [K_STAGES, BLOCK_N, D], tile_layout)
    v_smem = gl.allocate_shared_memory(dtype, [V_STAGES, BLOCK_N, D], tile_layout)
    tile_smem, tile_bars = tile_barriers()
    q_full = gl.allocate_shared_memory(gl.int64, [SLOTS * 2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [SLOTS * 2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [laps * K_STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [K_STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [laps * V_STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [V_STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS * 2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(K_STAGES):
        mbarrier.init(k_empty.index(i), count=2)
    for i in gl.static_range(V_STAGES):
        mbarrier.init(v_empty.index(i), count=2)
    for i in gl.static_range(laps * K_STAGES):
        mbarrier.init(k_full.index(i), count=1)
    for i in gl.static_range(laps * V_STAGES):
        mbarrier.init(v_full.index(i), count=1)
    fence_async_shared()

    Order, Unions, Places, Columns = parts_of_schedule(
        Schedule, Indices, n_layout_groups, n_entries, BLOCK_SIZE
    )
    k_ring, v_ring = (k_smem, k_full, k_empty), (v_smem, v_full, v_empty)
    bars = (q_full, q_empty, tile_bars)
    scale_log2 = softmax_scale * LOG2E
    n_tiles = n_groups * n_batch_heads
    heads = num_heads, n_batch_heads, heads_per_kv, heads_per_list
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    LOOK_UP: gl.constexpr = lists_of_tile
    gl.warp_specialize(
        [
            (consumer, (
                W0, desc_out, q_smem, k_ring, v_ring, tile_smem, bars, Indices, Places, Unions, Lse, n_groups, n_tiles,
                num_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list, D, BLOCK_N, BLOCK_SIZE, RATE,
                FAR_RATE, N_CLASSES, SLOTS, IS_CAUSAL, EVEN_KV, ORDER, UNROLL,
            )),
            (consumer, (
                W1, desc_out, q_smem, k_ring, v_ring, tile_smem, bars, Indices, Places, Unions, Lse, n_groups, n_tiles,
                num_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list, D, BLOCK_N, BLOCK_SIZE, RATE,
                FAR_RATE, N_CLASSES, SLOTS, IS_CAUSAL, EVEN_KV, ORDER, UNROLL,
            )),
            (producer, (
                desc_q, desc_k, desc_v, desc_k_far, desc_v_far, q_smem, k_ring, v_ring, tile_smem, bars, Columns, n_tiles,
                num_heads, first_row, q_offset, kv_len, heads_per_kv, D, BLOCK_N, BLOCK_SIZE, RATE, FAR_RATE, N_CLASSES, SLOTS,
            )),
            (take_tiles, (
                tile_smem, tile_bars, Counter, n_tiles, LOOK_UP,
                (Offsets, Indices, Order, heads, n_groups, n_rows, first_row, kv_len, BLOCK_SIZE, N_CLASSES, IS_CAUSAL, EVEN_KV),
            )),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
