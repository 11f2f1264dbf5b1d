"""Backward kernel for Hopper in a single pass over the columns: five products instead of the seven of two passes, dq added in memory.

Two warpgroups keep 64 keys each and do what the dkdv pass does (backward.py); they also leave ds in shared memory. A third
warpgroup multiplies it with all 128 keys (dq_warpgroup.py), and a warp lets TMA add the product to sums of dq in global memory
(dq_sums.py), so that no warpgroup waits for what leaves the multiprocessor. They are added in no fixed order: float32 sums of two
runs differ in their last bits. Those in FIXED_POINT do not (fixed_point.py), nor those of programs that take turns (turns.py).

With Cuts the rows are cut into ranges whose queries and sums stay in the L2 cache: a program takes the rows of a column in one
range, and adds to dk and dv, which are zero before the launch.

At block size 64 each of the two has a column of its own, as in the dkdv pass, and the third warpgroup goes through the blocks
of both: what either leaves of a block is added alone, what both leave is added once.

    sums    float32 or int32 (batch * num_heads, n_rows * BLOCK_SIZE / CHUNK, CHUNK * D) in lines of LINE, zero before the
            launch: dq without the softmax scale, and times the scale of its query, the numbers of a chunk in the order in which
            the threads hold them (`fragments`)

Block sizes 64 and 128, and calls without further arguments. single_pass_dq.py is what runs before and after; see backward.py for the
words.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)

from ..gluon_names import aggregate, reinterpret
from .backward import Config, Grid, Inputs
from .backward_loads import producer
from .backward_masks import KeyMask, KeyMaskWithoutBranch
from .backward_step import (
    GradSums,
    KeptTiles,
    StepConfig,
    Streams,
    add_to_qk,
    ds_of_step,
    ds_one_at_a_time,
    finish_step,
    operands_in_memory,
    operands_in_registers,
)
from .backward_terms import only_scaled
from .dq_sums import LINE, PIECE_LINES, DqSums, adding_warp
from .dq_warpgroup import DsRing, third_warpgroup
from .layouts import FLAT_LAYOUT, TILE_LAYOUT, product_layout
from .lse_delta import QueryStats
from .pipeline import PHASES, Ring, barriers, init_barriers
from .tile_scheduler import (
    NUMBERS_PER_TILE,
    WorkQueue,
    allocate_queue,
    block_lists,
    read_work_tile,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import add_tokens, release_stored, release_stored_before, store_tokens
from .turns import passing_warp


@aggregate
class KeyGrads:
    """Tensor descriptors of dk and dv."""

    k: tma.tensor_descriptor
    v: tma.tensor_descriptor


@aggregate
class ColumnHeads:
    """As `Heads` of key heads; columns of `beside` of them are started one after the other. cuts: of the lists, or None."""

    num: gl.tensor
    batched: gl.tensor
    per_kv: gl.tensor
    per_list: gl.tensor
    beside: gl.tensor
    cuts: gl.tensor | gl.constexpr


@aggregate
class Choices:
    """Constants of the three warpgroups.

    OPERANDS_IN_REGISTERS: k and v. ONE_AT_A_TIME: scores and dp are not computed together, and p is kept in 16 bits, so that
    the sums of head_dim 128 leave registers for a third warpgroup. FIXED_POINT: the sums of dq are int32.
    """

    OPERANDS_IN_REGISTERS: gl.constexpr
    ONE_AT_A_TIME: gl.constexpr
    FIXED_POINT: gl.constexpr
    s_layout: gl.constexpr
    sum_layout: gl.constexpr
    dq_layout: gl.constexpr


@gluon.jit
def find_column(tile, lists, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py), with the lists of its first query head, or what one has in a range of rows."""
    if heads.cuts is not None:
        n_ranges = grid.n_groups // grid.n_lists
        batch_head, rest = tile // grid.n_groups, tile % grid.n_groups
        layout_head = batch_head % heads.num * heads.per_kv // heads.per_list
        column = gl.load(lists.order + 1 + layout_head * grid.n_lists + rest % grid.n_lists)
        begins = heads.cuts + (layout_head * grid.n_lists + column) * (n_ranges + 1) + rest // grid.n_lists
        begin, end = gl.load(begins), gl.load(begins + 1)
        return batch_head, column, begin, end, end
    else:
        LISTS: gl.constexpr = 2 if config.BLOCK_SIZE == 64 else 1
        batch_head, group = work_tile_coords(
            lists.order, tile, grid.n_groups, heads, heads.per_kv, heads.beside
        )
        layout_head = batch_head % heads.num * heads.per_kv // heads.per_list
        begins = lists.offsets + layout_head * grid.n_lists + group * LISTS
        n_of_group = gl.minimum(LISTS, grid.n_lists - group * LISTS)
        return batch_head, group, gl.load(begins), gl.load(begins + 1), gl.load(begins + n_of_group)


@gluon.jit
def step(W: gl.constexpr, sums, operands, streams, ds_ring, place, ds_place, mask, terms, config):
    """Add the queries at a place of the streams to dk and dv, and hand over their ds."""
    DS_STAGES: gl.constexpr = ds_ring.tiles.shape[0] // 2
    if config.ONE_AT_A_TIME:
        sums, half_ds, q_tile = ds_one_at_a_time(sums, operands, streams, place, mask, terms, config)
    else:
        stats = QueryStats(0.0, 0.0)
        sums, half_ds, q_tile = ds_of_step(sums, operands, streams, stats, place, mask, terms, config, True)
    sums = add_to_qk(sums, half_ds, q_tile, streams, place, config)
    ds_stage = ds_place % DS_STAGES
    barrier = ds_stage
    if ds_ring.full.shape[0] > DS_STAGES:
        barrier = ds_stage * 2 + W
    mbarrier.wait(ds_ring.empty.index(barrier), ((ds_place // DS_STAGES) & 1) ^ 1)
    ds_ring.tiles.index(ds_stage * 2 + W).store(half_ds)
    fence_async_shared()
    mbarrier.arrive(ds_ring.full.index(barrier), count=1)
    return finish_step(sums, streams, place, config)


@gluon.jit
def consumer(
    W: gl.constexpr, grads, kept, streams, ds_ring, queue, lists, heads, grid, softmax_scale, config, choices
):
    """Warpgroup W: dk and dv of keys W * 64 to W * 64 + 63 of every column, or of two at block size 64."""
    IN_RANGES: gl.constexpr = heads.cuts is not None
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    PAIRED: gl.constexpr = config.BLOCK_SIZE == 64
    LATE_LSE: gl.constexpr = PAIRED  # as in the dkdv pass
    SUB: gl.constexpr = config.BLOCK_SIZE // config.TILE
    dtype: gl.constexpr = kept.qk.dtype
    sum_layout: gl.constexpr = choices.sum_layout
    k_boxes = reinterpret(kept.qk, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], grads.k.layout)
    v_boxes = reinterpret(kept.gv, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], grads.v.layout)
    terms = only_scaled(softmax_scale)
    step_config = StepConfig(
        True, "both", LATE_LSE, choices.ONE_AT_A_TIME, False, choices.s_layout, sum_layout, sum_layout
    )
    n_tiles = grid.n_groups * heads.batched
    it = 0
    if PAIRED:
        n_steps = 0
        last = -1
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.middle
        if PAIRED and W == 1:
            lo, hi = work.middle, work.hi
        i_batch, kv_head = work.batch_head // heads.num, work.batch_head % heads.num
        token = work.group * 128 + W * 64
        first_head = kv_head * heads.per_kv
        layout_head = first_head // heads.per_list
        index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
        if PAIRED:
            behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
            n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
        zeros = gl.zeros([64, D], gl.float32, layout=sum_layout)
        sums = GradSums(zeros, zeros, None, None)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(kept.full.index(slot), (i_tile // SLOTS) & 1)
        if choices.OPERANDS_IN_REGISTERS:
            operands = operands_in_registers(kept, slot, choices.s_layout)
        release_stored_before(kept.empty, i_tile, W, SLOTS)
        if PAIRED:  # see the dkdv pass
            last = gl.maximum(last, it - 1 - config.STAGES)
        for g in range(heads.per_kv):
            q_head = first_head + g
            if q_head // heads.per_list != layout_head:
                layout_head = q_head // heads.per_list
                if PAIRED:
                    first = work.group * 2
                    n_of_group = gl.minimum(2, grid.n_lists - first)
                    offsets = lists.offsets + layout_head * grid.n_lists + first
                    lo = gl.load(offsets + gl.minimum(W, n_of_group))
                    hi = gl.load(offsets + gl.minimum(W + 1, n_of_group))
                    behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
                    n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
                else:
                    offsets = lists.offsets + layout_head * grid.n_lists + work.group
                    lo, hi = gl.load(offsets), gl.load(offsets + 1)
                index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
            if PAIRED:
                last = streams.qk.wait_past(last, it + behind)
            for e in range(lo, hi):
                index_next = gl.load(lists.indices + gl.where(e + 1 < hi, e + 1, lo))
                if PAIRED:
                    place, ds_place = it + behind, n_steps
                    behind = gl.load(lists.places + gl.where(e + 1 < hi, e + 1, lo))
                else:
                    place, ds_place = it, it
                for sub in gl.static_range(SUB):
                    if not choices.OPERANDS_IN_REGISTERS:
                        operands = operands_in_memory(kept, slot)
                    query = grid.streamed_position + index * config.BLOCK_SIZE + sub * config.TILE
                    if PAIRED and choices.ONE_AT_A_TIME:
                        mask = KeyMaskWithoutBranch(
                            token, query, grid.kv_len, config.IS_CAUSAL, config.EVEN_KV
                        )
                    else:
                        mask = KeyMask(  # type: ignore[assignment]
                            token, query, grid.kv_len, config.IS_CAUSAL, config.EVEN_KV
                        )
                    sums = step(
                        W, sums, operands, streams, ds_ring, place + sub, ds_place + sub, mask, terms, step_config
                    )  # fmt: skip
                if PAIRED:
                    n_steps += 1
                    last = streams.qk.wait_past(place, it + behind)
                else:
                    it += SUB
                index = index_next
            if PAIRED:
                it += n_places
        # v and k are no longer needed: their memory holds the sums until they are stored; the third warpgroup still reads k
        kept.gv.index(slot).store(sums.v.to(dtype))
        fence_async_shared()
        if IN_RANGES:
            add_tokens(grads.v, v_boxes, slot, i_batch, kv_head, token, D)
        else:
            store_tokens(grads.v, v_boxes, slot, i_batch, kv_head, token, D)
        mbarrier.wait(ds_ring.done.index(i_tile % SLOTS), (i_tile // SLOTS) & 1)
        kept.qk.index(slot).store((sums.qk * softmax_scale).to(dtype))
        fence_async_shared()
        if IN_RANGES:
            add_tokens(grads.k, k_boxes, slot, i_batch, kv_head, token, D)
        else:
            store_tokens(grads.k, k_boxes, slot, i_batch, kv_head, token, D)
        release_stored(kept.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


@gluon.jit
def shared_memory(
    dtype: gl.constexpr, D: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr, DS_STAGES: gl.constexpr,
    PAIRED: gl.constexpr,
):  # fmt: skip
    """Kept tiles, streams, ds and work queue, ready to use."""
    FULLS: gl.constexpr = PHASES * STAGES if PAIRED else STAGES
    DS_BARRIERS: gl.constexpr = 2 * DS_STAGES if PAIRED else DS_STAGES
    kept_qk = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D], TILE_LAYOUT)
    kept_gv = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D], TILE_LAYOUT)
    qk = gl.allocate_shared_memory(dtype, [STAGES, TILE, D], TILE_LAYOUT)
    gv = gl.allocate_shared_memory(dtype, [STAGES, TILE, D], TILE_LAYOUT)
    ds = gl.allocate_shared_memory(dtype, [DS_STAGES * 2, 64, TILE], TILE_LAYOUT)
    lse = gl.allocate_shared_memory(gl.float32, [STAGES, TILE], FLAT_LAYOUT)
    delta = gl.allocate_shared_memory(gl.float32, [STAGES, TILE], FLAT_LAYOUT)
    numbers = gl.allocate_shared_memory(gl.int32, [2 * NUMBERS_PER_TILE, 1], FLAT_LAYOUT)
    queue_full, queue_empty = barriers(2), barriers(2)
    kept_full = barriers(SLOTS * 2)
    kept_empty = barriers(SLOTS * 2)
    done = barriers(SLOTS)
    qk_full = barriers(FULLS)
    gv_full = barriers(FULLS)
    empty = barriers(STAGES)
    ds_full = barriers(DS_BARRIERS)
    ds_empty = barriers(DS_BARRIERS)
    init_barriers(queue_full, 1, queue_empty, 5)  # three warpgroups, the loading and the adding warp
    init_barriers(kept_full, 2, kept_empty, 1)  # full: k, v
    init_barriers(done, 1)
    for i in gl.static_range(FULLS):
        mbarrier.init(qk_full.index(i), count=2)  # q; lse and delta
        mbarrier.init(gv_full.index(i), count=1)
        if i < STAGES:
            mbarrier.init(empty.index(i), count=2)
    init_barriers(ds_full, 1 if PAIRED else 2, ds_empty, 1)
    fence_async_shared()
    kept = KeptTiles(kept_qk, kept_gv, None, None, kept_full, kept_empty)
    streams = Streams(Ring(qk, qk_full, empty, None), Ring(gv, gv_full, empty, None), lse, delta)
    ds_ring = DsRing(ds, ds_full, ds_empty, done)
    return kept, streams, ds_ring, WorkQueue(numbers, queue_full, queue_empty)


NUMBERS = (
    "n_layout_groups", "n_entries", "n_groups", "n_lists", "n_rows", "num_heads", "n_batch_heads", "heads_per_kv",
    "heads_per_list", "heads_beside", "first_row", "kv_len",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def single_pass_kernel(
    desc_k, desc_v, desc_q, desc_grad_out, desc_dk, desc_dv, desc_sums, Stats, Scales, Turns, Done, Cuts, Offsets, Indices, WorkOrder, Counter,
    n_layout_groups, n_entries, n_groups, n_lists, n_rows, num_heads, n_batch_heads, heads_per_kv, heads_per_list, heads_beside,
    first_row, kv_len, softmax_scale, D: gl.constexpr, TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr,
    SLOTS: gl.constexpr, DS_STAGES: gl.constexpr, DQ_TILES: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    OPERANDS_IN_REGISTERS: gl.constexpr, ONE_AT_A_TIME: gl.constexpr, FIXED_POINT: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, DQ_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    kept, streams, ds_ring, queue = shared_memory(desc_k.dtype, D, TILE, STAGES, SLOTS, DS_STAGES, PAIRED)
    sums_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
    dq_tiles = gl.allocate_shared_memory(desc_sums.dtype, [DQ_TILES, PIECE_LINES, LINE], sums_layout)
    dq_full, dq_empty = barriers(DQ_TILES), barriers(DQ_TILES)
    init_barriers(dq_full, 1, dq_empty, 1)
    passed = None
    if Done is not None:
        passed = allocate_queue(1, READERS=1)
    fence_async_shared()
    sums = DqSums(desc_sums, dq_tiles, dq_full, dq_empty, Scales, Turns, Done, passed)
    lists = block_lists(Offsets, Indices, WorkOrder, n_layout_groups, n_entries, BLOCK_SIZE)
    grid = Grid(n_groups, n_lists, n_rows, 0, 0, 0, first_row * BLOCK_SIZE, kv_len)
    heads = ColumnHeads(num_heads, n_batch_heads, heads_per_kv, heads_per_list, heads_beside, Cuts)
    inputs = Inputs(desc_k, desc_v, desc_q, desc_grad_out)
    grads = KeyGrads(desc_dk, desc_dv)
    config = Config(
        D, D, TILE, BLOCK_SIZE, STAGES, SLOTS, OPERANDS_IN_REGISTERS, False, False, False, True, "both", IS_CAUSAL, EVEN_KV, False
    )  # fmt: skip
    s_layout: gl.constexpr = product_layout(TILE)
    sum_layout: gl.constexpr = product_layout(D)
    dq_layout: gl.constexpr = product_layout(64)
    choices = Choices(OPERANDS_IN_REGISTERS, ONE_AT_A_TIME, FIXED_POINT, s_layout, sum_layout, dq_layout)
    n_tiles = n_groups * n_batch_heads
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_column
    gl.warp_specialize(
        [
            (consumer, (W0, grads, kept, streams, ds_ring, queue, lists, heads, grid, softmax_scale, config, choices)),
            (consumer, (W1, grads, kept, streams, ds_ring, queue, lists, heads, grid, softmax_scale, config, choices)),
            (third_warpgroup, (kept, ds_ring, sums, queue, lists, heads, grid, config, choices)),
            (producer, (inputs, kept, streams, queue, lists, Stats, heads, grid, config)),
            (adding_warp, (sums, queue, lists, heads, grid, config)),
            (passing_warp, (sums,)),
            (scheduler_warp, (queue, Counter, n_tiles, FIND, lists, heads, grid, config)),
        ],
        [4, 4, 1, 1, 1, 1],
        [CONSUMER_REGISTERS, DQ_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
