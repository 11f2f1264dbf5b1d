"""Backward kernel for Hopper, in two passes: by rows for dq, by columns for dk and dv; no atomics, no float32 dq in memory.

Both passes are one program. Each of two warpgroups keeps two tiles of 64 tokens, a and b, in shared memory; tiles x and y
of the tokens in a list stream by, and the sums stay in registers:
    rows       a, b = q, grad_out   x, y = k, v          sum_x = dq, and first lse and delta for the columns (stats.py)
    columns    a, b = k, v          x, y = q, grad_out   sum_x = dk, sum_y = dv
    s = a x'; p = exp(s - lse);   dp = b y'; ds = p * (dp - delta);   sum_x += ds x, in the columns also sum_y += p y
That is seven products where one pass over the columns needs five (Shah et al., FlashAttention-3, arXiv:2407.08608), but
nothing is added in global memory: rows and columns may be of any length and in any order, and every run gives the same
bits. Sums of dq in memory would be half as large as all results; in fixed point, to have the same bits, one pass would be
between 1 % slower and 11 % faster, by estimate from its measured parts (attention-bench/NOTES.md).

    one warp         takes tiles of 128 tokens from a counter and tells the others of them (schedule.py)
    one warp         loads a and b of the tiles, then x and y of every entry of their lists
    two warpgroups   compute; they share no barriers but those of the ring, so the products of one run during the
                     exponentials of the other
At block size 128 both warpgroups have the same list. At block size 64 each has a row (column) of its own, and what both
see is loaded once, as in the forward. A program of the columns goes through all query heads that share its keys.
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
from .attend import LOG2E
from .backward_step import load_stats, shared_memory, step
from .lse_delta import CHUNK, load_saved, stats_of_queries
from .pipeline import LAPS, full_at, wait_past
from .tile_scheduler import (
    parts_of_schedule,
    shared_tile,
    take_tiles,
    tile_place,
    told_numbers,
    was_told,
)
from .tma import kept_tile, load_tokens, store_tokens, stored, stored_before


@gluon.jit
def stats_of_head(Stats, batch_head, n_rows, BLOCK_SIZE: gl.constexpr):
    """lse and delta of the queries of a query head."""
    return Stats + batch_head.to(gl.int64) * n_rows * (BLOCK_SIZE * 2)


@gluon.jit
def producer(
    desc_a, desc_b, desc_x, desc_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Offsets, Entries,
    Stats, n_groups, n_lists, n_rows, own_heads, n_batch_heads, heads_per_kv, heads_per_list, own_first, other_first,
    D: gl.constexpr, TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """Loads a and b of the tiles, then x and y of their lists, in the columns also lse and delta."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    dtype: gl.constexpr = a_smem.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    a_boxes = reinterpret(a_smem, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_a.layout)
    b_boxes = reinterpret(b_smem, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_b.layout)
    x_boxes = reinterpret(x_smem, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], desc_x.layout)
    y_boxes = reinterpret(y_smem, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], desc_y.layout)
    heads_per_tile = 1
    if COLUMNS:
        heads_per_tile = heads_per_kv
    n_tiles = n_groups * n_batch_heads
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, lo, middle, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        first = group * LISTS
        n_of_group = gl.minimum(LISTS, n_lists - first)
        first_head = batch_head % own_heads * heads_per_tile
        layout_head = first_head // heads_per_list
        entry = gl.load(Entries + lo, mask=lo < hi, other=0)
        i_batch, own_head = batch_head // own_heads, batch_head % own_heads
        token = own_first + group * 128
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = own_full.index(slot)
            mbarrier.wait(own_empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            # both arrivals of `full`: of the expected bytes of a, then of b
            load_tokens(desc_a, a_boxes, full, slot, i_batch, own_head, token + w * 64, 64, D)
            load_tokens(desc_b, b_boxes, full, slot, i_batch, own_head, token + w * 64, 64, D)
        if COLUMNS:
            stats = stats_of_head(Stats, batch_head * heads_per_tile, n_rows, BLOCK_SIZE)
            lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED)
        for g in range(heads_per_tile):
            q_head = first_head + g
            other_head = q_head
            if COLUMNS:
                stats = stats_of_head(Stats, batch_head * heads_per_tile + g, n_rows, BLOCK_SIZE)
                if q_head // heads_per_list != layout_head:  # else the end of a list led back to its begin
                    layout_head = q_head // heads_per_list
                    lists = Offsets + layout_head * n_lists + first
                    lo, hi = gl.load(lists), gl.load(lists + n_of_group)
                    entry = gl.load(Entries + lo, mask=lo < hi, other=0)
                    lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED)
            else:
                other_head = q_head // heads_per_kv
            n_steps = (hi - lo) * SUB
            for i in range(n_steps):
                is_last = i == n_steps - 1
                entry_next = gl.load(Entries + gl.where(is_last, lo, lo + (i + 1) // SUB))
                if entry >= 0:  # below 0 (block size 64 only): the same block as the entry before
                    one_only = False
                    index = entry
                    if PAIRED:
                        one_only = (entry & 1) == 0
                        index = entry >> 1
                    other = other_first + index * BLOCK_SIZE + (i % SUB) * TILE
                    stage = it % STAGES
                    x_bar, y_bar = full_at(x_full, it), full_at(y_full, it)
                    mbarrier.wait(empty.index(stage), ((it // STAGES) & 1) ^ 1)
                    mbarrier.arrive(empty.index(stage), count=1, pred=one_only)
                    load_tokens(desc_x, x_boxes, x_bar, stage, i_batch, other_head, other, TILE, D)
                    load_tokens(desc_y, y_boxes, y_bar, stage, i_batch, other_head, other, TILE, D)
                    if COLUMNS:
                        lse_smem.index(stage).store(lse)
                        delta_smem.index(stage).store(delta)
                        mbarrier.arrive(x_bar, count=1)
                    it += 1
                entry = entry_next
                if COLUMNS:
                    # of the next step, or of the next head's first: they come while its stage is waited for
                    if is_last & (g + 1 < heads_per_tile):
                        stats = stats_of_head(Stats, batch_head * heads_per_tile + g + 1, n_rows, BLOCK_SIZE)
                    lse, delta = load_stats(stats, entry, (i + 1) % SUB, TILE, SUB, PAIRED)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)


@gluon.jit
def lists_of_tile(tile, problem):
    """What is told of a tile (schedule.py), of the lists of the head it begins with."""
    Offsets, Order, n_groups, n_lists, own_heads, n_batch_heads, heads_per_kv, heads_per_list = problem[:8]
    BLOCK_SIZE: gl.constexpr = problem[8]
    COLUMNS: gl.constexpr = problem[9]
    LISTS: gl.constexpr = 2 if BLOCK_SIZE == 64 else 1
    heads_per_tile = 1
    heads_beside = heads_per_kv
    if COLUMNS:
        heads_per_tile = heads_per_kv
        heads_beside = 1
    batch_head, group = tile_place(
        Order, tile, n_groups, n_batch_heads, own_heads, heads_per_list, heads_per_tile, heads_beside
    )
    first = group * LISTS
    layout_head = batch_head % own_heads * heads_per_tile // heads_per_list
    lists = Offsets + layout_head * n_lists + first
    n_of_group = gl.minimum(LISTS, n_lists - first)
    return batch_head, group, gl.load(lists), gl.load(lists + 1), gl.load(lists + n_of_group)


@gluon.jit
def hide(p, seen, layout: gl.constexpr):
    """p, 0 where a query may not see the key; own and other are the positions of the first rows and columns of p.

    Keys past the end need no hiding in the columns: their dk and dv are not stored.
    """
    own, other, kv_len = seen[0], seen[1], seen[2]
    COLUMNS: gl.constexpr = seen[3]
    IS_CAUSAL: gl.constexpr = seen[4]
    EVEN_KV: gl.constexpr = seen[5]
    TILE: gl.constexpr = p.shape[1]
    if COLUMNS:
        if IS_CAUSAL:
            last_key = own + 63
            if last_key > other:
                key = own + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                query = other + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                p = gl.where(key[:, None] <= query[None, :], p, 0.0)
    else:
        if IS_CAUSAL or not EVEN_KV:
            limit = kv_len
            if IS_CAUSAL:
                limit = gl.minimum(kv_len, own + 1)
            if other + TILE > limit:
                key = other + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                visible = (key < kv_len)[None, :]
                if IS_CAUSAL:
                    query = own + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                    visible = visible & (key[None, :] <= query[:, None])
                p = gl.where(visible, p, 0.0)
    return p


@gluon.jit
def consumer(
    W: gl.constexpr, desc_sum_x, desc_sum_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Offsets,
    Indices, Places, Unions, Stats, saved, lse_of, n_groups, n_lists, n_rows, own_heads, n_batch_heads, heads_per_kv,
    heads_per_list, own_first, own_offset, other_offset, kv_len, softmax_scale, D: gl.constexpr, TILE: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr, HELD: gl.constexpr, LATE: gl.constexpr,
    CHAINED: gl.constexpr, COLUMNS: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, HAS_GRAD_LSE: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: tokens W * 64 to W * 64 + 63 of every tile."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    x_ring, y_ring = (x_smem, x_full, empty), (y_smem, y_full, empty)
    dtype: gl.constexpr = a_smem.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    own_operand: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    x_boxes = reinterpret(a_smem, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_sum_x.layout)
    y_boxes = reinterpret(b_smem, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_sum_y.layout)
    scale_log2 = softmax_scale * LOG2E
    heads_per_tile = 1
    if COLUMNS:
        heads_per_tile = heads_per_kv
    n_tiles = n_groups * n_batch_heads
    it = 0
    last = -1
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, lo, middle, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, own_head = batch_head // own_heads, batch_head % own_heads
        own = own_offset + group * 128 + W * 64
        token = own_first + group * 128 + W * 64
        first_head = batch_head % own_heads * heads_per_tile
        layout_head = first_head // heads_per_list
        if PAIRED and W == 1:
            lo, middle = middle, hi
        hi = middle
        # asked for before a and b are waited for
        index = gl.load(Indices + lo, mask=lo < hi, other=0)
        if PAIRED:
            behind = gl.load(Places + lo, mask=lo < hi, other=0)
            n_places = gl.load(Unions + layout_head * n_groups + group)
        sum_x = gl.zeros([64, D], gl.float32, layout=sum_layout)
        sum_y = 0
        lse = 0.0
        delta = 0.0
        if COLUMNS:
            sum_y = gl.zeros([64, D], gl.float32, layout=sum_layout)
        else:
            out, lse, grad_lse = load_saved(
                saved, lse_of, i_batch, own_head, batch_head, token, D, HAS_GRAD_LSE
            )
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(own_full.index(slot), (i_tile // SLOTS) & 1)
        if not COLUMNS:
            chunk = group * 2 + W
            n_chunks = n_rows * (BLOCK_SIZE // CHUNK)  # those past the last row are in no head
            stats = Stats + (batch_head.to(gl.int64) * n_chunks + chunk) * (2 * CHUNK)
            lse, delta = stats_of_queries(
                out, lse, grad_lse, b_smem.index(slot), stats, (n_chunks - chunk) * CHUNK, s_layout
            )
        if HELD:
            a, b = a_smem.index(slot).load(own_operand), b_smem.index(slot).load(own_operand)
        if PAIRED:
            # a and b were asked for after all places before `it`, so those a lap of stages back were filled. Not so
            # between heads: nothing says there how far the ring is
            last = gl.maximum(last, it - 1 - STAGES)
        stored_before(own_empty, i_tile, W, SLOTS)
        for g in range(heads_per_tile):
            if COLUMNS:
                q_head = first_head + g
                if q_head // heads_per_list != layout_head:  # else the end of a list led back to its begin
                    layout_head = q_head // heads_per_list
                    first = group * LISTS
                    n_of_group = gl.minimum(LISTS, n_lists - first)
                    lists = Offsets + layout_head * n_lists + first
                    lo = gl.load(lists + gl.minimum(W if PAIRED else 0, n_of_group))
                    hi = gl.load(lists + gl.minimum(W + 1 if PAIRED else 1, n_of_group))
                    index = gl.load(Indices + lo, mask=lo < hi, other=0)
                    if PAIRED:
                        behind = gl.load(Places + lo, mask=lo < hi, other=0)
                        n_places = gl.load(Unions + layout_head * n_groups + group)
            place = it
            if PAIRED:
                place += behind
            for e in range(lo, hi):
                # asked for a step early
                e_next = gl.where(e + 1 < hi, e + 1, lo)
                index_next = gl.load(Indices + e_next)
                place_next = place + SUB
                if PAIRED:
                    behind = gl.load(Places + e_next)
                    place_next = it + behind
                    wait_past(x_ring, last, place)
                for sub in gl.static_range(SUB):
                    if not HELD:
                        a, b = kept_tile((a_smem, slot)), kept_tile((b_smem, slot))
                    other = other_offset + index * BLOCK_SIZE + sub * TILE
                    sum_x, sum_y = step(
                        sum_x, sum_y, a, b, x_ring, y_ring, (lse_smem, delta_smem), lse, delta, place + sub, hide,
                        (own, other, kv_len, COLUMNS, IS_CAUSAL, EVEN_KV), scale_log2, COLUMNS, s_layout, sum_layout,
                        LATE, sub == 0 or not CHAINED, sub == SUB - 1 or not CHAINED,
                    )  # fmt: skip
                last = place
                index, place = index_next, place_next
            if not PAIRED:
                n_places = (hi - lo) * SUB
            it += n_places
            if PAIRED:
                # the list of the other warpgroup may go on, and so may the heads after this one with nothing in ours
                last = wait_past(x_ring, last, it - 1)

        # a and b are no longer needed: their memory holds the sums until they are stored
        a_smem.index(slot).store((sum_x * softmax_scale).to(dtype))
        if COLUMNS:
            b_smem.index(slot).store(sum_y.to(dtype))  # type: ignore[attr-defined]
        fence_async_shared()
        store_tokens(desc_sum_x, x_boxes, slot, i_batch, own_head, token, D)
        if COLUMNS:
            store_tokens(desc_sum_y, y_boxes, slot, i_batch, own_head, token, D)
        stored(own_empty, W, SLOTS)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_layout_groups", "n_entries", "n_groups", "n_lists", "n_rows", "own_heads", "n_batch_heads", "heads_per_kv",
    "heads_per_list", "first_row", "q_offset", "q_len", "kv_len",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    desc_a, desc_b, desc_x, desc_y, desc_sum_x, desc_sum_y, Stats, Out, Lse, GradLse, Offsets, Indices, Schedule, Counter,
    stride_ob, stride_os, stride_oh, stride_lb, stride_lh, stride_ls, n_layout_groups, n_entries, n_groups, n_lists, n_rows,
    own_heads, n_batch_heads, heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, softmax_scale,
    D: gl.constexpr, TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    HELD: gl.constexpr, LATE: gl.constexpr, CHAINED: gl.constexpr, COLUMNS: gl.constexpr, IS_CAUSAL: gl.constexpr,
    EVEN_KV: gl.constexpr, HAS_GRAD_LSE: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file; Out, Lse and GradLse are for the rows only.

    Launched with 4 warps: the first warpgroup is the default partition.
    """
    FULLS: gl.constexpr = LAPS * STAGES if BLOCK_SIZE == 64 else STAGES
    tiles, lse_smem, delta_smem, tile_smem, bars = shared_memory(
        desc_a.dtype, D, TILE, STAGES, SLOTS, FULLS, COLUMNS
    )
    a_smem, b_smem, x_smem, y_smem = tiles
    Order, Unions, Places, Entries = parts_of_schedule(
        Schedule, Indices, n_layout_groups, n_entries, BLOCK_SIZE
    )
    # `first`: of the tensor, `offset`: its position. The queries of the first row need not be at position 0
    first_query = first_row * BLOCK_SIZE - q_offset
    if COLUMNS:
        own_first, own_offset, other_first, other_offset = 0, 0, first_query, first_row * BLOCK_SIZE
    else:
        own_first, own_offset, other_first, other_offset = first_query, first_row * BLOCK_SIZE, 0, 0
    saved = (Out, stride_ob, stride_os, stride_oh, q_len)
    lse_of = (Lse, GradLse, stride_lb, stride_lh, stride_ls)
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    LOOK_UP: gl.constexpr = lists_of_tile
    gl.warp_specialize(
        [
            (consumer, (
                W0, desc_sum_x, desc_sum_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Offsets,
                Indices, Places, Unions, Stats, saved, lse_of, n_groups, n_lists, n_rows, own_heads, n_batch_heads, heads_per_kv,
                heads_per_list, own_first, own_offset, other_offset, kv_len, softmax_scale, D, TILE, BLOCK_SIZE, STAGES, SLOTS,
                HELD, LATE, CHAINED, COLUMNS, IS_CAUSAL, EVEN_KV, HAS_GRAD_LSE,
            )),
            (consumer, (
                W1, desc_sum_x, desc_sum_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Offsets,
                Indices, Places, Unions, Stats, saved, lse_of, n_groups, n_lists, n_rows, own_heads, n_batch_heads, heads_per_kv,
                heads_per_list, own_first, own_offset, other_offset, kv_len, softmax_scale, D, TILE, BLOCK_SIZE, STAGES, SLOTS,
                HELD, LATE, CHAINED, COLUMNS, IS_CAUSAL, EVEN_KV, HAS_GRAD_LSE,
            )),
            (producer, (
                desc_a, desc_b, desc_x, desc_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars,
                Offsets, Entries, Stats, n_groups, n_lists, n_rows, own_heads, n_batch_heads, heads_per_kv, heads_per_list,
                own_first, other_first, D, TILE, BLOCK_SIZE, STAGES, SLOTS, COLUMNS,
            )),
            (take_tiles, (
                tile_smem, bars[5], Counter, n_groups * n_batch_heads, LOOK_UP,
                (Offsets, Order, n_groups, n_lists, own_heads, n_batch_heads, heads_per_kv, heads_per_list, BLOCK_SIZE, COLUMNS),
            )),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
