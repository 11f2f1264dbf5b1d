"""Backward kernel for Hopper, in two passes: dq by rows, dk and dv by columns; no atomics, no float32 dq in memory.

Both passes are one program. Each of two warpgroups keeps two tiles of 64 tokens in shared memory, `qk` and `gv`; tiles `qk`
and `gv` of the tokens in a list stream by, and the sums stay in registers:
    dq pass     keeps q, grad_out   streams k, v          sums: qk = dq; first lse and delta for the dkdv pass (lse_delta.py)
    dkdv pass   keeps k, v          streams q, grad_out   sums: qk = dk, v = dv
    s = kept qk @ qk^T;    p = exp(s - lse);   dp = kept gv @ gv^T;   ds = p * (dp - delta)
    sums.qk += ds @ qk;    in the dkdv pass also sums.v += p @ gv
That is seven products where a single pass over the columns needs five (FlashAttention-3, Shah et al., arXiv:2407.08608), but
nothing is accumulated in global memory: rows and columns may be of any length and in any order, and every run gives the same
bits. Sums of dq in memory would be half as large as all results; in fixed point, to have the same bits, a single pass would
be between 1 % slower and 11 % faster, estimated from its measured parts (attention-bench/NOTES.md).

    one warp         takes tiles of 128 tokens from a counter and publishes them (tile_scheduler.py)
    one warp         loads the kept tiles, then the streamed tiles of every entry of their lists
    two warpgroups   compute; they share no barriers but those of the streams, so the products of one run during the
                     exponentials of the other
At block size 128 both warpgroups have the same list. At block size 64 each has a row (column) of its own, and what both
see is loaded once, as in the forward. In the dkdv pass a program goes through all query heads that share its keys.
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
from .attend import LOG2E
from .backward_step import (
    GradSums,
    StepConfig,
    load_stats,
    no_sums,
    operands_in_memory,
    operands_in_registers,
    shared_memory,
    step,
)
from .lse_delta import CHUNK, QueryStats, Saved, load_saved, stats_of_queries
from .pipeline import PHASES
from .tile_scheduler import (
    Heads,
    block_lists,
    read_work_tile,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import load_tokens, release_stored, release_stored_before, store_tokens


@aggregate
class Inputs:
    """Tensor descriptors of what is loaded."""

    kept_qk: tma.tensor_descriptor
    kept_gv: tma.tensor_descriptor
    qk: tma.tensor_descriptor
    gv: tma.tensor_descriptor


@aggregate
class Outputs:
    """Tensor descriptors of dq (twice), or of dk and dv."""

    qk: tma.tensor_descriptor
    v: tma.tensor_descriptor


@aggregate
class Grid:
    """Sizes of the call; `token` is where the first kept or streamed token is in its tensor, `position` its position."""

    n_groups: gl.tensor
    n_lists: gl.tensor
    n_rows: gl.tensor
    kept_token: gl.tensor | gl.constexpr
    kept_position: gl.tensor | gl.constexpr
    streamed_token: gl.tensor | gl.constexpr
    streamed_position: gl.tensor | gl.constexpr
    kv_len: gl.tensor


@aggregate
class Config:
    """Constants of the kernel."""

    D: gl.constexpr
    TILE: gl.constexpr
    BLOCK_SIZE: gl.constexpr
    STAGES: gl.constexpr
    SLOTS: gl.constexpr
    OPERANDS_IN_REGISTERS: gl.constexpr
    LATE_LSE: gl.constexpr
    OVERLAP_STEPS: gl.constexpr
    DKDV: gl.constexpr
    SUMS: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr


@aggregate
class BlockMask:
    """What is visible in p of a part of a block; `kept` and `streamed` are the positions of its first row and column."""

    kept: gl.tensor
    streamed: gl.tensor
    kv_len: gl.tensor
    DKDV: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key.

        The dkdv pass need not mask keys past the end: their dk and dv are not stored.
        """
        TILE: gl.constexpr = p.shape[1]
        if self.DKDV:
            if self.IS_CAUSAL:
                last_key = self.kept + 63
                if last_key > self.streamed:
                    key = self.kept + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                    query = self.streamed + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                    p = gl.where(key[:, None] <= query[None, :], p, 0.0)
        else:
            if self.IS_CAUSAL or not self.EVEN_KV:
                limit = self.kv_len
                if self.IS_CAUSAL:
                    limit = gl.minimum(self.kv_len, self.kept + 1)
                if self.streamed + TILE > limit:
                    key = self.streamed + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                    visible = (key < self.kv_len)[None, :]
                    if self.IS_CAUSAL:
                        query = self.kept + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                        visible = visible & (key[None, :] <= query[:, None])
                    p = gl.where(visible, p, 0.0)
        return p


@gluon.jit
def stats_of_head(Stats, batch_head, n_rows, BLOCK_SIZE: gl.constexpr):
    """lse and delta of the queries of a query head."""
    return Stats + batch_head.to(gl.int64) * n_rows * (BLOCK_SIZE * 2)


@gluon.jit
def producer(inputs, kept, streams, queue, lists, Stats, heads, grid, config):
    """The loading warp: the kept tiles, then the streamed tiles of their lists, in the dkdv pass also lse and delta."""
    D: gl.constexpr = config.D
    TILE: gl.constexpr = config.TILE
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    STAGES: gl.constexpr = config.STAGES
    SLOTS: gl.constexpr = config.SLOTS
    DKDV: gl.constexpr = config.DKDV
    dtype: gl.constexpr = kept.qk.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    kept_qk = reinterpret(kept.qk, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], inputs.kept_qk.layout)
    kept_gv = reinterpret(kept.gv, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], inputs.kept_gv.layout)
    qk_boxes = reinterpret(streams.qk.tiles, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], inputs.qk.layout)
    gv_boxes = reinterpret(streams.gv.tiles, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], inputs.gv.layout)
    heads_per_tile = 1
    if DKDV:
        heads_per_tile = heads.per_kv
    n_tiles = grid.n_groups * heads.batched
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.hi
        first = work.group * LISTS
        n_of_group = gl.minimum(LISTS, grid.n_lists - first)
        first_head = work.batch_head % heads.num * heads_per_tile
        layout_head = first_head // heads.per_list
        entry = gl.load(lists.entries + lo, mask=lo < hi, other=0)
        i_batch, kept_head = work.batch_head // heads.num, work.batch_head % heads.num
        token = grid.kept_token + work.group * 128
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = kept.full.index(slot)
            mbarrier.wait(kept.empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            # both arrivals of `full`: one per tile, with its bytes
            load_tokens(inputs.kept_qk, kept_qk, full, slot, i_batch, kept_head, token + w * 64, 64, D)
            load_tokens(inputs.kept_gv, kept_gv, full, slot, i_batch, kept_head, token + w * 64, 64, D)
        if DKDV:
            stats = stats_of_head(Stats, work.batch_head * heads_per_tile, grid.n_rows, BLOCK_SIZE)
            lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED)
        for g in range(heads_per_tile):
            q_head = first_head + g
            streamed_head = q_head
            if DKDV:
                stats = stats_of_head(Stats, work.batch_head * heads_per_tile + g, grid.n_rows, BLOCK_SIZE)
                # within a layout head, the end of a list has led back to its start
                if q_head // heads.per_list != layout_head:
                    layout_head = q_head // heads.per_list
                    offsets = lists.offsets + layout_head * grid.n_lists + first
                    lo, hi = gl.load(offsets), gl.load(offsets + n_of_group)
                    entry = gl.load(lists.entries + lo, mask=lo < hi, other=0)
                    lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED)
            else:
                streamed_head = q_head // heads.per_kv
            n_steps = (hi - lo) * SUB
            for i in range(n_steps):
                is_last = i == n_steps - 1
                entry_next = gl.load(lists.entries + gl.where(is_last, lo, lo + (i + 1) // SUB))
                if entry >= 0:  # negative (block size 64 only): the same block as the entry before
                    one_only = False
                    index = entry
                    if PAIRED:
                        one_only = (entry & 1) == 0
                        index = entry >> 1
                    streamed = grid.streamed_token + index * BLOCK_SIZE + (i % SUB) * TILE
                    stage = it % STAGES
                    qk_bar, gv_bar = streams.qk.full_barrier(it), streams.gv.full_barrier(it)
                    mbarrier.wait(streams.qk.empty.index(stage), ((it // STAGES) & 1) ^ 1)
                    mbarrier.arrive(streams.qk.empty.index(stage), count=1, pred=one_only)
                    load_tokens(inputs.qk, qk_boxes, qk_bar, stage, i_batch, streamed_head, streamed, TILE, D)
                    load_tokens(inputs.gv, gv_boxes, gv_bar, stage, i_batch, streamed_head, streamed, TILE, D)
                    if DKDV:
                        streams.lse.index(stage).store(lse)
                        streams.delta.index(stage).store(delta)
                        mbarrier.arrive(qk_bar, count=1)
                    it += 1
                entry = entry_next
                if DKDV:
                    # of the next step, or of the next head's first: they arrive while its stage is waited for
                    if is_last & (g + 1 < heads_per_tile):
                        stats = stats_of_head(
                            Stats, work.batch_head * heads_per_tile + g + 1, grid.n_rows, BLOCK_SIZE
                        )
                    lse, delta = load_stats(stats, entry, (i + 1) % SUB, TILE, SUB, PAIRED)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)


@gluon.jit
def find_lists(tile, lists, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py), with the lists of its first head."""
    LISTS: gl.constexpr = 2 if config.BLOCK_SIZE == 64 else 1
    heads_per_tile = 1
    heads_beside = heads.per_kv
    if config.DKDV:
        heads_per_tile = heads.per_kv
        heads_beside = 1
    batch_head, group = work_tile_coords(
        lists.order, tile, grid.n_groups, heads, heads_per_tile, heads_beside
    )
    first = group * LISTS
    layout_head = batch_head % heads.num * heads_per_tile // heads.per_list
    offsets = lists.offsets + layout_head * grid.n_lists + first
    n_of_group = gl.minimum(LISTS, grid.n_lists - first)
    return batch_head, group, gl.load(offsets), gl.load(offsets + 1), gl.load(offsets + n_of_group)


@gluon.jit
def consumer(
    W: gl.constexpr, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config
):
    """Warpgroup W: tokens W * 64 to W * 64 + 63 of every tile."""
    D: gl.constexpr = config.D
    TILE: gl.constexpr = config.TILE
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    SLOTS: gl.constexpr = config.SLOTS
    DKDV: gl.constexpr = config.DKDV
    OVERLAP_STEPS: gl.constexpr = config.OVERLAP_STEPS
    dtype: gl.constexpr = kept.qk.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    step_config = StepConfig(DKDV, config.SUMS, config.LATE_LSE, s_layout, sum_layout)
    qk_boxes = reinterpret(kept.qk, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], outputs.qk.layout)
    v_boxes = reinterpret(kept.gv, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], outputs.v.layout)
    scale_log2 = softmax_scale * LOG2E
    heads_per_tile = 1
    if DKDV:
        heads_per_tile = heads.per_kv
    n_tiles = grid.n_groups * heads.batched
    it = 0
    last = -1
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.middle
        if PAIRED and W == 1:
            lo, hi = work.middle, work.hi
        i_batch, kept_head = work.batch_head // heads.num, work.batch_head % heads.num
        kept_position = grid.kept_position + work.group * 128 + W * 64
        token = grid.kept_token + work.group * 128 + W * 64
        first_head = work.batch_head % heads.num * heads_per_tile
        layout_head = first_head // heads.per_list
        # requested before the kept tiles are waited for
        index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
        if PAIRED:
            behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
            n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
        stats = QueryStats(0.0, 0.0)
        if DKDV:
            sums = no_sums(D, config.SUMS, sum_layout)
        else:
            sums = GradSums(gl.zeros([64, D], gl.float32, layout=sum_layout), gl.to_tensor(0))
            out, lse, grad_lse = load_saved(saved, i_batch, kept_head, work.batch_head, token, D)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(kept.full.index(slot), (i_tile // SLOTS) & 1)
        if not DKDV:
            chunk = work.group * 2 + W
            n_chunks = grid.n_rows * (BLOCK_SIZE // CHUNK)  # those past the last row are in no head
            chunk_stats = Stats + (work.batch_head.to(gl.int64) * n_chunks + chunk) * (2 * CHUNK)
            stats = stats_of_queries(
                out, lse, grad_lse, kept.gv.index(slot), chunk_stats, (n_chunks - chunk) * CHUNK, s_layout
            )
        if config.OPERANDS_IN_REGISTERS:
            operands = operands_in_registers(kept, slot, s_layout)
        if PAIRED:
            # the kept tiles were requested after all places before `it`, so those one round of the ring back have arrived.
            # This does not hold between heads: no load of kept tiles shows there which stages have arrived
            last = gl.maximum(last, it - 1 - config.STAGES)
        release_stored_before(kept.empty, i_tile, W, SLOTS)
        for g in range(heads_per_tile):
            if DKDV:
                q_head = first_head + g
                # within a layout head, the end of a list has led back to its start
                if q_head // heads.per_list != layout_head:
                    layout_head = q_head // heads.per_list
                    first = work.group * LISTS
                    n_of_group = gl.minimum(LISTS, grid.n_lists - first)
                    offsets = lists.offsets + layout_head * grid.n_lists + first
                    lo = gl.load(offsets + gl.minimum(W if PAIRED else 0, n_of_group))
                    hi = gl.load(offsets + gl.minimum(W + 1 if PAIRED else 1, n_of_group))
                    index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
                    if PAIRED:
                        behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
                        n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
            place = it
            if PAIRED:
                place += behind
            for e in range(lo, hi):
                # requested a step early
                e_next = gl.where(e + 1 < hi, e + 1, lo)
                index_next = gl.load(lists.indices + e_next)
                place_next = place + SUB
                if PAIRED:
                    behind = gl.load(lists.places + e_next)
                    place_next = it + behind
                    streams.qk.wait_past(last, place)
                for sub in gl.static_range(SUB):
                    if not config.OPERANDS_IN_REGISTERS:
                        operands = operands_in_memory(kept, slot)
                    streamed_position = grid.streamed_position + index * BLOCK_SIZE + sub * TILE
                    mask = BlockMask(
                        kept_position, streamed_position, grid.kv_len, DKDV, config.IS_CAUSAL, config.EVEN_KV
                    )
                    sums = step(
                        sums, operands, streams, stats, place + sub, mask, scale_log2, step_config,
                        sub == 0 or not OVERLAP_STEPS, sub == SUB - 1 or not OVERLAP_STEPS,
                    )  # fmt: skip
                last = place
                index, place = index_next, place_next
            if not PAIRED:
                n_places = (hi - lo) * SUB
            it += n_places
            if PAIRED:
                # the other warpgroup's list may be longer, or later heads may have entries only for it
                last = streams.qk.wait_past(last, it - 1)

        # the kept tiles are no longer needed: their memory holds the sums until they are stored
        if config.SUMS != "v":
            kept.qk.index(slot).store((sums.qk * softmax_scale).to(dtype))
        if config.SUMS != "qk":
            kept.gv.index(slot).store(sums.v.to(dtype))
        fence_async_shared()
        if config.SUMS != "v":
            store_tokens(outputs.qk, qk_boxes, slot, i_batch, kept_head, token, D)
        if config.SUMS != "qk":
            store_tokens(outputs.v, v_boxes, slot, i_batch, kept_head, token, D)
        release_stored(kept.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "stride_lb", "stride_lh", "stride_ls", "has_grad_lse", "n_layout_groups", "n_entries", "n_groups", "n_lists", "n_rows",
    "num_heads", "n_batch_heads", "heads_per_kv",
    "heads_per_list", "first_row", "q_offset", "q_len", "kv_len", "v_dim",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    desc_kept_qk, desc_kept_gv, desc_qk, desc_gv, desc_grad_qk, desc_grad_v, Stats, Out, Lse, GradLse, Offsets, Indices,
    WorkOrder, Counter, stride_ob, stride_os, stride_oh, stride_lb, stride_lh, stride_ls, has_grad_lse, n_layout_groups, n_entries, n_groups,
    n_lists, n_rows, num_heads, n_batch_heads, heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, v_dim,
    softmax_scale, D: gl.constexpr, TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    OPERANDS_IN_REGISTERS: gl.constexpr, LATE_LSE: gl.constexpr, OVERLAP_STEPS: gl.constexpr, DKDV: gl.constexpr, SUMS: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file; Out, Lse and GradLse are for the dq pass only.

    Launched with 4 warps: the first warpgroup is the default partition.
    """
    FULLS: gl.constexpr = PHASES * STAGES if BLOCK_SIZE == 64 else STAGES
    kept, streams, queue = shared_memory(desc_kept_qk.dtype, D, TILE, STAGES, SLOTS, FULLS, DKDV)
    lists = block_lists(Offsets, Indices, WorkOrder, n_layout_groups, n_entries, BLOCK_SIZE)
    # the queries of the first row need not be at position 0
    first_query = first_row * BLOCK_SIZE - q_offset
    if DKDV:
        grid = Grid(n_groups, n_lists, n_rows, 0, 0, first_query, first_row * BLOCK_SIZE, kv_len)
    else:
        grid = Grid(n_groups, n_lists, n_rows, first_query, first_row * BLOCK_SIZE, 0, 0, kv_len)
    saved = Saved(
        Out, stride_ob, stride_os, stride_oh, Lse, GradLse, stride_lb, stride_lh, stride_ls, has_grad_lse, q_len, v_dim
    )  # fmt: skip
    heads = Heads(num_heads, n_batch_heads, heads_per_kv, heads_per_list)
    inputs = Inputs(desc_kept_qk, desc_kept_gv, desc_qk, desc_gv)
    outputs = Outputs(desc_grad_qk, desc_grad_v)
    config = Config(
        D, TILE, BLOCK_SIZE, STAGES, SLOTS, OPERANDS_IN_REGISTERS, LATE_LSE, OVERLAP_STEPS, DKDV, SUMS, IS_CAUSAL, EVEN_KV,
    )  # fmt: skip
    n_tiles = n_groups * n_batch_heads
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_lists
    gl.warp_specialize(
        [
            (consumer, (W0, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config)),
            (consumer, (W1, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config)),
            (producer, (inputs, kept, streams, queue, lists, Stats, heads, grid, config)),
            (scheduler_warp, (queue, Counter, n_tiles, FIND, lists, heads, grid, config)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
