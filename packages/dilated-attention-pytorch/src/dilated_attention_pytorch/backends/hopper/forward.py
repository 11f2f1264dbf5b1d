"""Forward kernel for Hopper: a persistent, warp-specialised FlashAttention-3 whose next key tile comes from a list.

    one warp       takes tiles of 128 queries from a counter, walks their block lists and issues the TMA loads;
    two warpgroups compute 64 queries each:  s = q k_j^T while acc += p_{j-1} v_{j-1} is still running, then the
                   softmax of tile j (Shah et al., FlashAttention-3, arXiv:2407.08608, algorithm 2).
At block size 128 both warpgroups have the same list. At block size 64 each has a row of its own; a key block that
both rows see is loaded once: the producer walks the union of the two lists, `Places` says where in it an entry is.
Token dilation: a tile of keys is joined from the kept keys of several entries; dropped keys are never loaded.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)

from .attend import INFINITY, LOG2E, attend_ahead, attend_list
from .ring import LAPS, full_at
from .schedule import next_tile, parts_of_schedule, shared_tile, tile_place
from .tiles import load_tokens, store_tokens

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def load_box(
    desc, boxes, bar, stage, j, i_batch, kv_head, residue, first, D: gl.constexpr, JOIN: gl.constexpr
):
    """The kept keys of one block, in pieces of 64 of head_dim (the width of a 128-byte swizzle)."""
    for piece in gl.static_range(D // 64):
        box = boxes.index((stage * (D // 64) + piece) * JOIN + j)
        tma.async_copy_global_to_shared(desc, [i_batch, kv_head, first, residue, piece * 64], bar, box)


@gluon.jit
def load_tile(
    desc, boxes, full, empty, Columns, e, hi, column, n_cols, stage, phase, one_only, i_batch, kv_head, residue,
    BLOCK_N: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr, JOIN: gl.constexpr,
):  # fmt: skip
    """Fill a stage of the ring of k or v, when it is given back, with the blocks of the entries from e on."""
    mbarrier.wait(empty, phase)
    mbarrier.arrive(empty, count=1, pred=one_only)
    mbarrier.expect(full, BLOCK_N * D * 2)
    load_box(desc, boxes, full, stage, 0, i_batch, kv_head, residue, column * KEYS, D, JOIN)
    for j in gl.static_range(1, JOIN):
        # past the end of the list a box lies outside of the tensor: zeros, and no traffic
        other = gl.load(Columns + e + j, mask=e + j < hi, other=n_cols)
        load_box(desc, boxes, full, stage, j, i_batch, kv_head, residue, other * KEYS, D, JOIN)


@gluon.jit
def produce_list(
    desc_k, desc_v, k_smem, v_smem, k_full, k_empty, v_full, v_empty, Columns, lo, hi, it, i_batch, kv_head, head,
    n_cols, D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr,
    STAGES: gl.constexpr, PAIRED: gl.constexpr,
):  # fmt: skip
    """Load the tiles of a list; returns the next place in the ring of stages."""
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    JOIN: gl.constexpr = BLOCK_N // KEYS
    N_BOXES: gl.constexpr = STAGES * (D // 64) * JOIN
    k_boxes = k_smem._reinterpret(desc_k.dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_k.layout)
    v_boxes = v_smem._reinterpret(desc_v.dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_v.layout)
    residue = head % RATE
    for e in range(lo, hi, JOIN):
        column = gl.load(Columns + e)
        if column >= 0:  # below 0 (block size 64 only): the same block as the entry before
            stage = it % STAGES
            phase = ((it // STAGES) & 1) ^ 1
            k_bar, v_bar = full_at(k_full, it), full_at(v_full, it)
            one_only = False
            if PAIRED:
                one_only = (column & 1) == 0
                column = column >> 1
            load_tile(
                desc_k, k_boxes, k_bar, k_empty.index(stage), Columns, e, hi, column, n_cols, stage, phase, one_only, i_batch,
                kv_head, residue, BLOCK_N, KEYS, D, JOIN,
            )  # fmt: skip
            load_tile(
                desc_v, v_boxes, v_bar, v_empty.index(stage), Columns, e, hi, column, n_cols, stage, phase, one_only, i_batch,
                kv_head, residue, BLOCK_N, KEYS, D, JOIN,
            )  # fmt: skip
            it += 1
    return it


@gluon.jit
def producer(
    desc_q, desc_k, desc_v, desc_k_far, desc_v_far, q_smem, k_smem, v_smem, tile_smem, bars, Offsets, Columns, Order,
    Counter, n_groups, n_rows, num_heads, n_batch_heads, first_row, q_offset, kv_len, heads_per_kv,
    heads_per_list, D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Takes tiles and loads q, k and v."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tile_full, tile_empty = bars
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    ROWS: gl.constexpr = 2 if PAIRED else 1
    q_boxes = q_smem._reinterpret(desc_q.dtype, [2 * (D // 64), 1, 1, 64, 64], desc_q.layout)
    n_tiles = n_groups * n_batch_heads
    n_cols = gl.cdiv(kv_len, BLOCK_SIZE)
    it = 0
    i_tile = 0
    tile = next_tile(Counter, n_tiles, tile_smem, tile_full, tile_empty, i_tile)
    while tile < n_tiles:
        batch_head, group = tile_place(Order, tile, n_groups, n_batch_heads, num_heads, heads_per_list)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        query0 = (first_row + group * ROWS) * BLOCK_SIZE - q_offset
        for w in gl.static_range(2):
            mbarrier.wait(q_empty.index(w), (i_tile & 1) ^ 1)
            load_tokens(desc_q, q_boxes, q_full.index(w), w, i_batch, head, query0 + w * 64, 64, D)
        row = group * ROWS
        first_list = ((head // heads_per_list) * n_rows + row) * N_CLASSES
        n_lists = N_CLASSES
        if PAIRED:
            n_lists = gl.minimum(2, n_rows - row)
        lo = gl.load(Offsets + first_list)
        if N_CLASSES == 1:
            hi = gl.load(Offsets + first_list + n_lists)
            it = produce_list(
                desc_k, desc_v, k_smem, v_smem, k_full, k_empty, v_full, v_empty, Columns, lo, hi, it, i_batch,
                head // heads_per_kv, head, n_cols, D, BLOCK_N, BLOCK_SIZE, RATE, STAGES, PAIRED,
            )  # fmt: skip
        else:
            hi = gl.load(Offsets + first_list + 1)
            it = produce_list(
                desc_k, desc_v, k_smem, v_smem, k_full, k_empty, v_full, v_empty, Columns, lo, hi, it, i_batch,
                head // heads_per_kv, head, n_cols, D, BLOCK_N, BLOCK_SIZE, RATE, STAGES, PAIRED,
            )  # fmt: skip
            last = gl.load(Offsets + first_list + 2)
            it = produce_list(
                desc_k_far, desc_v_far, k_smem, v_smem, k_full, k_empty, v_full, v_empty, Columns, hi, last, it,
                i_batch, head // heads_per_kv, head, n_cols, D, BLOCK_N, BLOCK_SIZE, FAR_RATE, STAGES, PAIRED,
            )  # fmt: skip
        i_tile += 1
        tile = next_tile(Counter, n_tiles, tile_smem, tile_full, tile_empty, i_tile)


@gluon.jit
def consumer(
    W: gl.constexpr, desc_out, q_smem, k_smem, v_smem, tile_smem, bars, Offsets, Indices, Places, Unions, Order, Lse,
    n_groups, n_rows, num_heads, n_batch_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list,
    D: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr,
    N_CLASSES: gl.constexpr, STAGES: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    AHEAD: gl.constexpr, UNROLL: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: queries W * 64 to W * 64 + 63 of every tile."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty, tile_full, tile_empty = bars
    k_ring, v_ring = (k_smem, k_full, k_empty), (v_smem, v_full, v_empty)
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    ROWS: gl.constexpr = 2 if PAIRED else 1
    dtype: gl.constexpr = q_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    q_tile = q_smem.index(W)
    out_boxes = q_smem._reinterpret(dtype, [2 * (D // 64), 1, 1, 64, 64], desc_out.layout)
    n_tiles = n_groups * n_batch_heads
    it = 0
    last = -1
    i_tile = 0
    tile = shared_tile(tile_smem, tile_full, tile_empty, i_tile)
    while tile < n_tiles:
        batch_head, group = tile_place(Order, tile, n_groups, n_batch_heads, num_heads, heads_per_list)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        row = group * ROWS
        if PAIRED:
            position0 = (first_row + row + W) * BLOCK_SIZE
        else:
            position0 = (first_row + row) * BLOCK_SIZE + W * 64
        position = position0 + gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
        m = gl.full([64], -INFINITY, gl.float32, layout=gl.SliceLayout(1, s_layout))
        l = gl.full([64], 0.0, gl.float32, layout=gl.SliceLayout(1, s_layout))
        acc = gl.zeros([64, D], gl.float32, layout=acc_layout)
        mbarrier.wait(q_full.index(W), i_tile & 1)
        first_list = ((head // heads_per_list) * n_rows + row) * N_CLASSES
        if PAIRED:
            n_lists = gl.minimum(2, n_rows - row)
            # q of this tile was asked for after all places before `it`, so those a lap of stages back were filled
            last = gl.maximum(last, it - 1 - STAGES)
            lo = gl.load(Offsets + first_list + gl.minimum(W, n_lists))
            hi = gl.load(Offsets + first_list + gl.minimum(W + 1, n_lists))
            acc, m, l, last = attend_ahead(
                q_tile, k_ring, v_ring, Indices, Places, lo, hi, acc, m, l, it, last, position0, position, head, kv_len,
                scale_log2, BLOCK_N, BLOCK_SIZE, 1, STAGES, True, IS_CAUSAL, EVEN_KV, UNROLL, s_layout,
                acc_layout, p_layout,
            )  # fmt: skip
            it += gl.load(Unions + (head // heads_per_list) * n_groups + group)
        else:
            lo = gl.load(Offsets + first_list)
            hi = gl.load(Offsets + first_list + 1)
            acc, m, l, it = attend_list(
                q_tile, k_ring, v_ring, Indices, lo, hi, acc, m, l, it, position0, position, head, kv_len, scale_log2,
                BLOCK_N, BLOCK_SIZE, RATE, STAGES, IS_CAUSAL, EVEN_KV, AHEAD, UNROLL, s_layout, acc_layout,
                p_layout,
            )  # fmt: skip
            if N_CLASSES == 2:
                far = gl.load(Offsets + first_list + 2)
                acc, m, l, it = attend_list(
                    q_tile, k_ring, v_ring, Indices, hi, far, acc, m, l, it, position0, position, head, kv_len, scale_log2,
                    BLOCK_N, BLOCK_SIZE, FAR_RATE, STAGES, IS_CAUSAL, EVEN_KV, AHEAD, UNROLL, s_layout,
                    acc_layout, p_layout,
                )  # fmt: skip

        empty = l == 0.0
        l = gl.where(empty, 1.0, l)
        lse = gl.where(empty, -INFINITY, (m + gl.log2(l)) * LN2)
        query = position - q_offset
        gl.store(Lse + batch_head.to(gl.int64) * q_len + query, lse, mask=(query >= 0) & (query < q_len))
        out = acc * gl.convert_layout(1.0 / l, gl.SliceLayout(1, acc_layout))[:, None]
        q_tile.store(out.to(dtype))  # q is no longer needed: its memory holds out until it is stored
        fence_async_shared()
        store_tokens(desc_out, out_boxes, W, i_batch, head, position0 - q_offset, D)
        tma.store_wait(0)
        mbarrier.arrive(q_empty.index(W), count=1)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_full, tile_empty, i_tile)


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
    STAGES: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    AHEAD: gl.constexpr, UNROLL: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    dtype: gl.constexpr = desc_q.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    FULLS: gl.constexpr = LAPS * STAGES if BLOCK_SIZE == 64 else STAGES
    q_smem = gl.allocate_shared_memory(dtype, [2, 64, D], tile_layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], tile_layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], tile_layout)
    tile_smem = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [FULLS, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [FULLS, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    tile_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    tile_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(tile_full.index(i), count=1)
        mbarrier.init(tile_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    for i in gl.static_range(FULLS):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
    fence_async_shared()

    Order, Unions, Places, Columns = parts_of_schedule(
        Schedule, Indices, n_layout_groups, n_entries, BLOCK_SIZE
    )
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty, tile_full, tile_empty)
    scale_log2 = softmax_scale * LOG2E
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    gl.warp_specialize(
        [
            (consumer, (
                W0, desc_out, q_smem, k_smem, v_smem, tile_smem, bars, Offsets, Indices, Places, Unions, Order, Lse, n_groups,
                n_rows, num_heads, n_batch_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list, D,
                BLOCK_N, BLOCK_SIZE, RATE, FAR_RATE, N_CLASSES, STAGES, IS_CAUSAL, EVEN_KV,
                AHEAD, UNROLL,
            )),
            (consumer, (
                W1, desc_out, q_smem, k_smem, v_smem, tile_smem, bars, Offsets, Indices, Places, Unions, Order, Lse, n_groups,
                n_rows, num_heads, n_batch_heads, first_row, q_offset, q_len, kv_len, scale_log2, heads_per_list, D,
                BLOCK_N, BLOCK_SIZE, RATE, FAR_RATE, N_CLASSES, STAGES, IS_CAUSAL, EVEN_KV,
                AHEAD, UNROLL,
            )),
            (producer, (
                desc_q, desc_k, desc_v, desc_k_far, desc_v_far, q_smem, k_smem, v_smem, tile_smem, bars, Offsets,
                Columns, Order, Counter, n_groups, n_rows, num_heads, n_batch_heads, first_row, q_offset, kv_len,
                heads_per_kv, heads_per_list, D, BLOCK_N, BLOCK_SIZE, RATE, FAR_RATE, N_CLASSES, STAGES,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
