"""Backward with token dilation for Hopper, the pass over columns for dk and dv: that of backward.py without the dropped keys.

Blocks have 128 tokens. A program takes 128 keys of one residue, those of JOINED = max(rates) columns, 128 / JOINED of each.
Their k and v stay; q and grad_out of every row that sees one of the columns stream by. Which columns are joined, and the
lists of rows, with a bit for every column that is seen, are in column_groups.py. A list is passed over whole for a
head that keeps other keys at its distance; a warpgroup passes over rows that see none of its columns. So a kept key costs
no more than a key without dilation where the joined columns are seen by the same rows.
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
from .backward_step import BLOCK, load_stats, shared_memory, step
from .pipeline import full_at, give_back, wait_full
from .tile_scheduler import shared_tile, take_tiles, tile_place, told_numbers, was_told
from .tma import kept_tile, load_box, load_tokens, store_box, stored, stored_before


@gluon.jit
def parts_of_joined(Schedule, n_layout_groups, N_CLASSES: gl.constexpr):
    """How far apart joined columns stand, order, offsets and pairs: the parts of a schedule (column_groups.py)."""
    Offsets = Schedule + 2 + n_layout_groups
    return gl.load(Schedule), Schedule + 1, Offsets, Offsets + n_layout_groups * N_CLASSES + 1


@gluon.jit
def joined_column(group, member, apart, JOINED: gl.constexpr):
    """Which column is a member of a group (column_groups.py)."""
    return group // apart * (apart * JOINED) + member * apart + group % apart


@gluon.jit
def place_of_columns(
    Order, tile, n_groups, n_batch_kv_heads, num_kv_heads, heads_per_kv, heads_per_list, JOINED: gl.constexpr
):
    """(batch and kv head, group and residue as one number) of a tile; first all tiles with the residue of their first head."""
    n_of_residue = n_groups * n_batch_kv_heads
    batch_head, group = tile_place(
        Order, tile % n_of_residue, n_groups, n_batch_kv_heads, num_kv_heads, heads_per_list, heads_per_kv, 1
    )
    first_head = (batch_head % num_kv_heads) * heads_per_kv
    return batch_head, group * JOINED + (first_head + tile // n_of_residue) % JOINED


@gluon.jit
def list_of_head(
    Offsets, first_list, residue, head, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr
):
    """Begin and end of what a tile is seen by: the lists of the distance classes, which follow each other, in which the head keeps its keys."""
    lo = gl.load(Offsets + first_list)
    hi = gl.load(Offsets + first_list + N_CLASSES)
    middle = hi
    if N_CLASSES == 2:
        middle = gl.load(Offsets + first_list + 1)
        if residue % FAR_RATE != head % FAR_RATE:
            hi = middle
    if residue % RATE != head % RATE:
        lo = middle
    return lo, hi


@gluon.jit
def load_rows(
    desc_x, desc_y, x_smem, y_smem, lse_smem, delta_smem, bars, Pairs, stats, lo, hi, it, i_batch, head, first_query,
    D: gl.constexpr,
):  # fmt: skip
    """Load q, grad_out, lse and delta of the rows of a list; returns the next place in the ring."""
    x_full, y_full, empty = bars
    STAGES: gl.constexpr = x_smem.shape[0]
    TILE: gl.constexpr = x_smem.shape[1]
    SUB: gl.constexpr = BLOCK // TILE
    x_boxes = reinterpret(x_smem, x_smem.dtype, [STAGES * (D // 64), 1, 1, TILE, 64], desc_x.layout)
    y_boxes = reinterpret(y_smem, y_smem.dtype, [STAGES * (D // 64), 1, 1, TILE, 64], desc_y.layout)
    row = gl.load(Pairs + 2 * lo, mask=lo < hi, other=0)
    lse, delta = load_stats(stats, row, 0, TILE, SUB, False)
    for i in range((hi - lo) * SUB):
        next_row = gl.load(Pairs + 2 * gl.minimum(lo + (i + 1) // SUB, hi - 1))
        query = first_query + row * BLOCK + (i % SUB) * TILE
        stage = it % STAGES
        x_bar, y_bar = full_at(x_full, it), full_at(y_full, it)
        mbarrier.wait(empty.index(stage), ((it // STAGES) & 1) ^ 1)
        load_tokens(desc_x, x_boxes, x_bar, stage, i_batch, head, query, TILE, D)
        load_tokens(desc_y, y_boxes, y_bar, stage, i_batch, head, query, TILE, D)
        lse_smem.index(stage).store(lse)
        delta_smem.index(stage).store(delta)
        mbarrier.arrive(x_bar, count=1)
        it += 1
        row = next_row
        lse, delta = load_stats(
            stats, row, (i + 1) % SUB, TILE, SUB, False
        )  # while their stage is waited for
    return it


@gluon.jit
def columns_producer(
    desc_a, desc_b, desc_x, desc_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Schedule, Stats,
    n_groups, n_layout_groups, n_rows, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_query,
    D: gl.constexpr, JOINED: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    SLOTS: gl.constexpr,
):  # fmt: skip
    """Loads k and v of tiles of joined columns, then q and grad_out of the rows that see them."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    ring_bars = x_full, y_full, empty
    KEYS: gl.constexpr = BLOCK // JOINED
    IN_HALF: gl.constexpr = JOINED // 2
    N_BOXES: gl.constexpr = SLOTS * JOINED * (D // 64)
    a_boxes = reinterpret(a_smem, a_smem.dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_a.layout)
    b_boxes = reinterpret(b_smem, b_smem.dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_b.layout)
    apart, _, Offsets, Pairs = parts_of_joined(Schedule, n_layout_groups, N_CLASSES)
    n_tiles = JOINED * n_groups * n_batch_kv_heads
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, residue, lo, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = own_full.index(slot)
            mbarrier.wait(own_empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            mbarrier.expect(full, 64 * D * 2)
            mbarrier.expect(full, 64 * D * 2)  # both arrivals of `full`: of the bytes of k, and of v
            for j in gl.static_range(IN_HALF):
                first = joined_column(group, w * IN_HALF + j, apart, JOINED) * KEYS
                load_box(
                    desc_a, a_boxes, full, slot * IN_HALF + j, i_batch, kv_head, residue, first, D, IN_HALF
                )
                load_box(
                    desc_b, b_boxes, full, slot * IN_HALF + j, i_batch, kv_head, residue, first, D, IN_HALF
                )
        for g in range(heads_per_kv):
            head = kv_head * heads_per_kv + g
            stats = Stats + (batch_head * heads_per_kv + g).to(gl.int64) * n_rows * (BLOCK * 2)
            if g > 0:
                first_list = ((head // heads_per_list) * n_groups + group) * N_CLASSES
                lo, hi = list_of_head(Offsets, first_list, residue, head, RATE, FAR_RATE, N_CLASSES)
            it = load_rows(
                desc_x, desc_y, x_smem, y_smem, lse_smem, delta_smem, ring_bars, Pairs, stats, lo, hi, it, i_batch, head,
                first_query, D,
            )  # fmt: skip
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)


@gluon.jit
def list_of_columns(tile, problem):
    """What is told of a tile of joined columns (schedule.py), of the list of its first head."""
    Schedule, n_groups, n_layout_groups, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list = (
        problem[:7]
    )
    JOINED: gl.constexpr = problem[7]
    RATE: gl.constexpr = problem[8]
    FAR_RATE: gl.constexpr = problem[9]
    N_CLASSES: gl.constexpr = problem[10]
    _, Order, Offsets, _ = parts_of_joined(Schedule, n_layout_groups, N_CLASSES)
    batch_head, place = place_of_columns(
        Order, tile, n_groups, n_batch_kv_heads, num_kv_heads, heads_per_kv, heads_per_list, JOINED
    )
    group, residue = place // JOINED, place % JOINED
    head = (batch_head % num_kv_heads) * heads_per_kv
    first_list = ((head // heads_per_list) * n_groups + group) * N_CLASSES
    lo, hi = list_of_head(Offsets, first_list, residue, head, RATE, FAR_RATE, N_CLASSES)
    return batch_head, group, residue, lo, hi


@gluon.jit
def hide_rows_of_columns(p, seen, layout: gl.constexpr):
    """p, 0 where the row of a query does not see the column, or, with the causal mask, the query not the key."""
    mine, first_column, apart, residue, other = seen[0], seen[1], seen[2], seen[3], seen[4]
    JOINED: gl.constexpr = seen[5]
    IS_CAUSAL: gl.constexpr = seen[6]
    IN_HALF: gl.constexpr = JOINED // 2
    KEYS: gl.constexpr = BLOCK // JOINED
    own = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    if mine != (1 << IN_HALF) - 1:
        p = gl.where((((mine >> (own // KEYS)) & 1) != 0)[:, None], p, 0.0)
    if IS_CAUSAL:
        last_column = first_column + (IN_HALF - 1) * apart
        if (last_column + 1) * BLOCK > other + 1:
            key = (first_column + own // KEYS * apart) * BLOCK + residue + own % KEYS * JOINED
            query = other + gl.arange(0, p.shape[1], layout=gl.SliceLayout(0, layout))
            p = gl.where(key[:, None] <= query[None, :], p, 0.0)
    return p


@gluon.jit
def add_rows(
    dk, dv, own_smem, slot, x_ring, y_ring, stats_smem, Pairs, lo, hi, it, own_place, first_position, scale_log2,
    W: gl.constexpr, JOINED: gl.constexpr, HELD: gl.constexpr, IS_CAUSAL: gl.constexpr, s_layout: gl.constexpr,
    sum_layout: gl.constexpr,
):  # fmt: skip
    """Add the queries of the rows of a list to dk and dv; also the next place in the ring."""
    a_smem, b_smem = own_smem
    first_column, apart, residue = own_place
    TILE: gl.constexpr = x_ring[0].shape[1]
    SUB: gl.constexpr = BLOCK // TILE
    IN_HALF: gl.constexpr = JOINED // 2
    own_operand: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    if HELD:
        a, b = a_smem.index(slot).load(own_operand), b_smem.index(slot).load(own_operand)
    row = gl.load(Pairs + 2 * lo, mask=lo < hi, other=0)
    bits = gl.load(Pairs + 2 * lo + 1, mask=lo < hi, other=0)
    for i in range((hi - lo) * SUB):
        pair = Pairs + 2 * gl.minimum(lo + (i + 1) // SUB, hi - 1)  # of the next step: asked for a step early
        next_row, next_bits = gl.load(pair), gl.load(pair + 1)
        mine = (bits >> (W * IN_HALF)) & ((1 << IN_HALF) - 1)
        other = first_position + row * BLOCK + (i % SUB) * TILE
        if mine == 0:
            wait_full(x_ring[1], it)
            wait_full(y_ring[1], it)
            give_back(x_ring, it)
        else:
            if not HELD:
                a, b = kept_tile((a_smem, slot)), kept_tile((b_smem, slot))
            dk, dv = step(
                dk, dv, a, b, x_ring, y_ring, stats_smem, 0.0, 0.0, it, hide_rows_of_columns,
                (mine, first_column, apart, residue, other, JOINED, IS_CAUSAL), scale_log2, True, s_layout, sum_layout,
            )  # fmt: skip
        it += 1
        row, bits = next_row, next_bits
    return dk, dv, it


@gluon.jit
def columns_consumer(
    W: gl.constexpr, desc_dk, desc_dv, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Schedule,
    n_groups, n_layout_groups, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_position, softmax_scale,
    D: gl.constexpr, JOINED: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    SLOTS: gl.constexpr, HELD: gl.constexpr, IS_CAUSAL: gl.constexpr,
):  # fmt: skip
    """Warpgroup W: one half of the columns of every tile."""
    own_full, own_empty, x_full, y_full, empty, tile_bars = bars
    x_ring, y_ring, stats_smem = (x_smem, x_full, empty), (y_smem, y_full, empty), (lse_smem, delta_smem)
    dtype: gl.constexpr = a_smem.dtype
    TILE: gl.constexpr = x_smem.shape[1]
    KEYS: gl.constexpr = BLOCK // JOINED
    IN_HALF: gl.constexpr = JOINED // 2
    N_BOXES: gl.constexpr = SLOTS * JOINED * (D // 64)
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    dk_boxes = reinterpret(a_smem, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_dk.layout)
    dv_boxes = reinterpret(b_smem, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_dv.layout)
    apart, _, Offsets, Pairs = parts_of_joined(Schedule, n_layout_groups, N_CLASSES)
    scale_log2 = softmax_scale * LOG2E
    n_tiles = JOINED * n_groups * n_batch_kv_heads
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        batch_head, group, residue, lo, hi = told_numbers(tile_smem, i_tile)
        was_told(tile_bars, i_tile)
        i_batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
        own_place = joined_column(group, W * IN_HALF, apart, JOINED), apart, residue
        dk = gl.zeros([64, D], gl.float32, layout=sum_layout)
        dv = gl.zeros([64, D], gl.float32, layout=sum_layout)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(own_full.index(slot), (i_tile // SLOTS) & 1)
        stored_before(own_empty, i_tile, W, SLOTS)
        for g in range(heads_per_kv):
            if g > 0:
                head = kv_head * heads_per_kv + g
                first_list = ((head // heads_per_list) * n_groups + group) * N_CLASSES
                lo, hi = list_of_head(Offsets, first_list, residue, head, RATE, FAR_RATE, N_CLASSES)
            dk, dv, it = add_rows(
                dk, dv, (a_smem, b_smem), slot, x_ring, y_ring, stats_smem, Pairs, lo, hi, it, own_place, first_position,
                scale_log2, W, JOINED, HELD, IS_CAUSAL, s_layout, sum_layout,
            )  # fmt: skip
        # k and v are no longer needed: their memory holds dk and dv until they are stored
        a_smem.index(slot).store((dk * softmax_scale).to(dtype))
        b_smem.index(slot).store(dv.to(dtype))
        fence_async_shared()
        for j in gl.static_range(IN_HALF):
            first = joined_column(group, W * IN_HALF + j, apart, JOINED) * KEYS
            store_box(desc_dk, dk_boxes, slot * IN_HALF + j, i_batch, kv_head, residue, first, D, IN_HALF)
            store_box(desc_dv, dv_boxes, slot * IN_HALF + j, i_batch, kv_head, residue, first, D, IN_HALF)
        stored(own_empty, W, SLOTS)
        i_tile += 1
        tile = shared_tile(tile_smem, tile_bars, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_groups", "n_layout_groups", "n_rows", "num_kv_heads", "n_batch_kv_heads", "heads_per_kv", "heads_per_list", "first_row",
    "q_offset",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def dilated_columns_kernel(
    desc_a, desc_b, desc_x, desc_y, desc_dk, desc_dv, Stats, Schedule, Counter, n_groups, n_layout_groups, n_rows,
    num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_row, q_offset, softmax_scale, D: gl.constexpr,
    TILE: gl.constexpr, JOINED: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    STAGES: gl.constexpr, SLOTS: gl.constexpr, HELD: gl.constexpr, IS_CAUSAL: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    tiles, lse_smem, delta_smem, tile_smem, bars = shared_memory(
        desc_a.dtype, D, TILE, STAGES, SLOTS, STAGES, True
    )
    a_smem, b_smem, x_smem, y_smem = tiles
    first_query = first_row * BLOCK - q_offset
    first_position = first_row * BLOCK
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    LOOK_UP: gl.constexpr = list_of_columns
    gl.warp_specialize(
        [
            (columns_consumer, (
                W0, desc_dk, desc_dv, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Schedule, n_groups,
                n_layout_groups, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_position, softmax_scale,
                D, JOINED, RATE, FAR_RATE, N_CLASSES, SLOTS, HELD, IS_CAUSAL,
            )),
            (columns_consumer, (
                W1, desc_dk, desc_dv, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Schedule, n_groups,
                n_layout_groups, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_position, softmax_scale,
                D, JOINED, RATE, FAR_RATE, N_CLASSES, SLOTS, HELD, IS_CAUSAL,
            )),
            (columns_producer, (
                desc_a, desc_b, desc_x, desc_y, a_smem, b_smem, x_smem, y_smem, lse_smem, delta_smem, tile_smem, bars, Schedule,
                Stats, n_groups, n_layout_groups, n_rows, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list,
                first_query, D, JOINED, RATE, FAR_RATE, N_CLASSES, SLOTS,
            )),
            (take_tiles, (
                tile_smem, bars[5], Counter, JOINED * n_groups * n_batch_kv_heads, LOOK_UP,
                (
                    Schedule, n_groups, n_layout_groups, num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, JOINED,
                    RATE, FAR_RATE, N_CLASSES,
                ),
            )),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
