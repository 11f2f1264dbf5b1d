"""Backward with token dilation for Hopper, the pass over rows for dq: that of backward.py without the keys that a head drops.

Blocks have 128 tokens; of one at a distance with rate r a head keeps 128 / r keys. k and v stream by as in the forward:
a tile is joined from the kept keys of several entries.
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
from .attend import LOG2E, visible_keys
from .backward_step import BLOCK, shared_memory, step
from .lse_delta import CHUNK, load_saved, stats_of_queries
from .pipeline import full_at
from .tile_scheduler import shared_tile, take_tiles, tile_place, told_numbers, was_told
from .tma import kept_tile, load_box, load_tokens, store_tokens, stored, stored_before


@gluon.jit
def load_class(
    desc_x, desc_y, x_smem, y_smem, bars, Indices, lo, hi, it, i_batch, kv_head, head, n_cols, RATE: gl.constexpr,
    D: gl.constexpr,
):  # fmt: skip
    """Load the tiles of a list, joined from several entries or parts of one; returns the next place in the ring."""
    x_full, y_full, empty = bars
    STAGES: gl.constexpr = x_smem.shape[0]
    TILE: gl.constexpr = x_smem.shape[1]
    KEYS: gl.constexpr = BLOCK // RATE
    BOX: gl.constexpr = KEYS if KEYS < TILE else TILE
    JOIN: gl.constexpr = TILE // BOX
    N_BOXES: gl.constexpr = STAGES * (D // 64) * JOIN
    x_boxes = reinterpret(x_smem, x_smem.dtype, [N_BOXES, 1, 1, BOX, 1, 64], desc_x.layout)
    y_boxes = reinterpret(y_smem, y_smem.dtype, [N_BOXES, 1, 1, BOX, 1, 64], desc_y.layout)
    for e in range(lo, hi, JOIN):
        for part in gl.static_range(KEYS // BOX):
            stage = it % STAGES
            x_bar, y_bar = full_at(x_full, it), full_at(y_full, it)
            mbarrier.wait(empty.index(stage), ((it // STAGES) & 1) ^ 1)
            mbarrier.expect(x_bar, TILE * D * 2)
            mbarrier.expect(y_bar, TILE * D * 2)
            for j in gl.static_range(JOIN):
                # past the end of the list a box lies outside of the tensor: zeros, and no traffic
                column = gl.load(Indices + e + j, mask=e + j < hi, other=n_cols)
                first = column * KEYS + part * BOX
                load_box(
                    desc_x, x_boxes, x_bar, stage * JOIN + j, i_batch, kv_head, head % RATE, first, D, JOIN
                )
                load_box(
                    desc_y, y_boxes, y_bar, stage * JOIN + j, i_batch, kv_head, head % RATE, first, D, JOIN
                )
            it += 1
    return it


@gluon.jit
def rows_producer(
    desc_a, desc_b, desc_x, desc_y, desc_x_far, desc_y_far, a_smem, b_smem, x_smem, y_smem, tile_smem, bars,
    Indices, n_rows, num_heads, n_batch_heads, heads_per_kv, first_query, kv_len,
    D: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Loads q and grad_out of the rows, then the kept k and v of their lists."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    ring_bars = x_full, y_full, empty
    a_boxes = reinterpret(a_smem, a_smem.dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_a.layout)
    b_boxes = reinterpret(b_smem, b_smem.dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_b.layout)
    n_tiles = n_rows * n_batch_heads
    n_cols = gl.cdiv(kv_len, BLOCK)
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, row, lo, middle, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        query = first_query + row * BLOCK
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = own_full.index(slot)
            mbarrier.wait(own_empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            load_tokens(desc_a, a_boxes, full, slot, i_batch, head, query + w * 64, 64, D)
            load_tokens(desc_b, b_boxes, full, slot, i_batch, head, query + w * 64, 64, D)
        kv_head = head // heads_per_kv
        it = load_class(
            desc_x, desc_y, x_smem, y_smem, ring_bars, Indices, lo, middle, it, i_batch, kv_head, head, n_cols, RATE, D
        )  # fmt: skip
        if N_CLASSES == 2:
            it = load_class(
                desc_x_far, desc_y_far, x_smem, y_smem, ring_bars, Indices, middle, hi, it, i_batch, kv_head, head, n_cols,
                FAR_RATE, D,
            )  # fmt: skip
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)


@gluon.jit
def lists_of_row(tile, problem):
    """What is told of a row (schedule.py)."""
    Offsets, Order, n_rows, num_heads, n_batch_heads, heads_per_kv, heads_per_list = problem[:7]
    N_CLASSES: gl.constexpr = problem[7]
    batch_head, row = tile_place(
        Order, tile, n_rows, n_batch_heads, num_heads, heads_per_list, 1, heads_per_kv
    )
    lists = Offsets + (((batch_head % num_heads) // heads_per_list) * n_rows + row) * N_CLASSES
    return batch_head, row, gl.load(lists), gl.load(lists + 1), gl.load(lists + N_CLASSES)


@gluon.jit
def hide_keys_of_row(p, seen, layout: gl.constexpr):
    """p of a joined tile, 0 where a query may not see the key, or where there is none."""
    keys, t, own, last_column = seen[0], seen[1], seen[2], seen[3]
    RATE: gl.constexpr = seen[4]
    IS_CAUSAL: gl.constexpr = seen[5]
    Indices, lo, hi, head, kv_len = keys
    TILE: gl.constexpr = p.shape[1]
    limit = kv_len
    if IS_CAUSAL:
        limit = gl.minimum(kv_len, own + 1)
    if ((last_column + 1) * BLOCK > limit) | ((t + 1) * TILE > (hi - lo) * (BLOCK // RATE)):
        query = own + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
        p = gl.where(visible_keys(keys, t, query, TILE, BLOCK, RATE, IS_CAUSAL, layout), p, 0.0)
    return p


@gluon.jit
def rows_of_class(
    dq, own_smem, slot, x_ring, y_ring, lse, delta, Indices, lo, hi, it, own, head, kv_len, scale_log2, RATE: gl.constexpr,
    HELD: gl.constexpr, IS_CAUSAL: gl.constexpr, s_layout: gl.constexpr, sum_layout: gl.constexpr,
):  # fmt: skip
    """Add the keys of a list to dq; also the next place in the ring."""
    a_smem, b_smem = own_smem
    TILE: gl.constexpr = x_ring[0].shape[1]
    KEYS: gl.constexpr = BLOCK // RATE
    own_operand: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    if HELD:
        a, b = a_smem.index(slot).load(own_operand), b_smem.index(slot).load(own_operand)
    keys = Indices, lo, hi, head, kv_len
    n_tiles = gl.cdiv((hi - lo) * KEYS, TILE)
    last_column = gl.load(Indices + gl.minimum(lo + (TILE - 1) // KEYS, hi - 1), mask=lo < hi, other=0)
    for t in range(n_tiles):
        last_entry = gl.minimum(lo + ((t + 2) * TILE - 1) // KEYS, hi - 1)  # of the next tile: a step early
        next_last_column = gl.load(Indices + last_entry)
        if not HELD:
            a, b = kept_tile((a_smem, slot)), kept_tile((b_smem, slot))
        dq, _ = step(
            dq, 0, a, b, x_ring, y_ring, (x_ring[0], x_ring[0]), lse, delta, it + t, hide_keys_of_row,
            (keys, t, own, last_column, RATE, IS_CAUSAL), scale_log2, False, s_layout, sum_layout,
        )  # fmt: skip
        last_column = next_last_column
    return dq, it + n_tiles


@gluon.jit
def rows_consumer(
    W: gl.constexpr, desc_dq, a_smem, b_smem, x_smem, y_smem, tile_smem, bars, Offsets, Indices, Stats, saved, lse_of,
    n_rows, num_heads, n_batch_heads, heads_per_list, first_query, first_position, kv_len, softmax_scale, D: gl.constexpr,
    RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, SLOTS: gl.constexpr, HELD: gl.constexpr,
    IS_CAUSAL: gl.constexpr, HAS_GRAD_LSE: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: queries W * 64 to W * 64 + 63 of every row."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    x_ring, y_ring = (x_smem, x_full, empty), (y_smem, y_full, empty)
    TILE: gl.constexpr = x_smem.shape[1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    dq_boxes = reinterpret(a_smem, a_smem.dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_dq.layout)
    scale_log2 = softmax_scale * LOG2E
    n_tiles = n_rows * n_batch_heads
    n_chunks = n_rows * (BLOCK // CHUNK)
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, row, lo, middle, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, head = batch_head // num_heads, batch_head % num_heads
        query = first_query + row * BLOCK + W * 64
        own = first_position + row * BLOCK + W * 64
        out, lse, grad_lse = load_saved(saved, lse_of, i_batch, head, batch_head, query, D, HAS_GRAD_LSE)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(own_full.index(slot), (i_tile // SLOTS) & 1)
        chunk = row * 2 + W
        stats = Stats + (batch_head.to(gl.int64) * n_chunks + chunk) * (2 * CHUNK)
        lse, delta = stats_of_queries(
            out, lse, grad_lse, b_smem.index(slot), stats, (n_chunks - chunk) * CHUNK, s_layout
        )
        stored_before(own_empty, i_tile, W, SLOTS)
        dq = gl.zeros([64, D], gl.float32, layout=sum_layout)
        dq, it = rows_of_class(
            dq, (a_smem, b_smem), slot, x_ring, y_ring, lse, delta, Indices, lo, middle, it, own, head, kv_len, scale_log2,
            RATE, HELD, IS_CAUSAL, s_layout, sum_layout,
        )  # fmt: skip
        if N_CLASSES == 2:
            dq, it = rows_of_class(
                dq, (a_smem, b_smem), slot, x_ring, y_ring, lse, delta, Indices, middle, hi, it, own, head, kv_len, scale_log2,
                FAR_RATE, HELD, IS_CAUSAL, s_layout, sum_layout,
            )  # fmt: skip
        # q is no longer needed: its memory holds dq until it is stored
        a_smem.index(slot).store((dq * softmax_scale).to(a_smem.dtype))
        fence_async_shared()
        store_tokens(desc_dq, dq_boxes, slot, i_batch, head, query, D)
        stored(own_empty, W, SLOTS)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_rows", "num_heads", "n_batch_heads", "heads_per_kv", "heads_per_list", "first_row", "q_offset", "q_len", "kv_len",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def dilated_rows_kernel(
    desc_a, desc_b, desc_x, desc_y, desc_x_far, desc_y_far, desc_dq, Stats, Out, Lse, GradLse, Offsets, Indices, Schedule,
    Counter, stride_ob, stride_os, stride_oh, stride_lb, stride_lh, stride_ls, n_rows, num_heads, n_batch_heads,
    heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, softmax_scale, D: gl.constexpr, TILE: gl.constexpr,
    RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    HELD: gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_GRAD_LSE: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    tiles, _, _, tile_smem, bars = shared_memory(desc_a.dtype, D, TILE, STAGES, SLOTS, STAGES, False)
    a_smem, b_smem, x_smem, y_smem = tiles
    first_query = first_row * BLOCK - q_offset
    first_position = first_row * BLOCK
    saved = (Out, stride_ob, stride_os, stride_oh, q_len)
    lse_of = (Lse, GradLse, stride_lb, stride_lh, stride_ls)
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    LOOK_UP: gl.constexpr = lists_of_row
    gl.warp_specialize(
        [
            (rows_consumer, (
                W0, desc_dq, a_smem, b_smem, x_smem, y_smem, tile_smem, bars, Offsets, Indices, Stats, saved, lse_of, n_rows,
                num_heads, n_batch_heads, heads_per_list, first_query, first_position, kv_len, softmax_scale, D, RATE,
                FAR_RATE, N_CLASSES, SLOTS, HELD, IS_CAUSAL, HAS_GRAD_LSE,
            )),
            (rows_consumer, (
                W1, desc_dq, a_smem, b_smem, x_smem, y_smem, tile_smem, bars, Offsets, Indices, Stats, saved, lse_of, n_rows,
                num_heads, n_batch_heads, heads_per_list, first_query, first_position, kv_len, softmax_scale, D, RATE,
                FAR_RATE, N_CLASSES, SLOTS, HELD, IS_CAUSAL, HAS_GRAD_LSE,
            )),
            (rows_producer, (
                desc_a, desc_b, desc_x, desc_y, desc_x_far, desc_y_far, a_smem, b_smem, x_smem, y_smem, tile_smem, bars,
                Indices, n_rows, num_heads, n_batch_heads, heads_per_kv, first_query, kv_len, D, RATE, FAR_RATE, N_CLASSES,
                SLOTS,
            )),
            (take_tiles, (
                tile_smem, bars[5], Counter, n_rows * n_batch_heads, LOOK_UP,
                (Offsets, Schedule, n_rows, num_heads, n_batch_heads, heads_per_kv, heads_per_list, N_CLASSES),
            )),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
