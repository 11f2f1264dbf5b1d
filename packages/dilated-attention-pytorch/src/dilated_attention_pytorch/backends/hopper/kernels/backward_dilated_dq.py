"""Backward with token dilation for Hopper, the dq pass: that of backward.py without the keys that a head drops.

Blocks have 128 tokens; a head keeps 128 / r keys of a block at a distance with rate r. k and v stream by as in the forward:
a tile consists of the kept keys of several entries.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)

from ..gluon_names import DELTA_FIRST, aggregate, reinterpret
from .attend import KeyList, visible_keys
from .backward_step import (
    BLOCK,
    GradSums,
    StepConfig,
    operands_in_memory,
    operands_in_registers,
    shared_memory,
    step,
)
from .backward_terms import only_scaled
from .layouts import product_layout
from .lse_delta import CHUNK, Saved, load_saved, stats_of_queries
from .tile_scheduler import (
    BlockLists,
    Heads,
    read_work_tile,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import load_box, load_tokens, release_stored, release_stored_before, store_tokens


@aggregate
class Inputs:
    """Tensor descriptors; `far` reads the keys kept in blocks of the second distance class."""

    q: tma.tensor_descriptor
    grad_out: tma.tensor_descriptor
    k: tma.tensor_descriptor
    v: tma.tensor_descriptor
    k_far: tma.tensor_descriptor
    v_far: tma.tensor_descriptor


@aggregate
class Grid:
    """Sizes of the call; where the queries of the first row are in their tensor, and their position."""

    n_rows: gl.tensor
    first_query: gl.tensor
    first_position: gl.tensor
    kv_len: gl.tensor


@aggregate
class Config:
    """Constants of the kernel."""

    D: gl.constexpr
    RATE: gl.constexpr
    FAR_RATE: gl.constexpr
    N_CLASSES: gl.constexpr
    SLOTS: gl.constexpr
    OPERANDS_IN_REGISTERS: gl.constexpr
    IS_CAUSAL: gl.constexpr


@aggregate
class RowMask:
    """What is visible in p of tile t of a list; `query` is the position of the first query."""

    keys: KeyList
    t: gl.tensor
    query: gl.tensor
    last_column: gl.tensor
    IS_CAUSAL: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key, or the list has no more keys."""
        TILE: gl.constexpr = p.shape[1]
        keys = self.keys
        limit = keys.kv_len
        if self.IS_CAUSAL:
            limit = gl.minimum(keys.kv_len, self.query + 1)
        if ((self.last_column + 1) * BLOCK > limit) | (
            (self.t + 1) * TILE > (keys.hi - keys.lo) * (BLOCK // keys.RATE)
        ):
            query = self.query + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
            p = gl.where(visible_keys(keys, self.t, query, TILE, self.IS_CAUSAL, layout), p, 0.0)
        return p


@gluon.jit
def load_list(
    desc_k, desc_v, streams, indices, lo, hi, it, batch_head, heads, n_cols, RATE: gl.constexpr, config
):
    """Load the tiles of a list, each several entries or a part of one; return the next place in the streams."""
    D: gl.constexpr = config.D
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    dtype: gl.constexpr = streams.qk.tiles.dtype
    KEYS: gl.constexpr = BLOCK // RATE
    BOX: gl.constexpr = KEYS if KEYS < TILE else TILE
    JOIN: gl.constexpr = TILE // BOX
    N_BOXES: gl.constexpr = STAGES * (D // 64) * JOIN
    k_boxes = reinterpret(streams.qk.tiles, dtype, [N_BOXES, 1, 1, BOX, 1, 64], desc_k.layout)
    v_boxes = reinterpret(streams.gv.tiles, dtype, [N_BOXES, 1, 1, BOX, 1, 64], desc_v.layout)
    i_batch, head = batch_head // heads.num, batch_head % heads.num
    kv_head = head // heads.per_kv
    for e in range(lo, hi, JOIN):
        for part in gl.static_range(KEYS // BOX):
            stage = it % STAGES
            k_bar, v_bar = streams.qk.full_barrier(it), streams.gv.full_barrier(it)
            mbarrier.wait(streams.qk.empty.index(stage), ((it // STAGES) & 1) ^ 1)
            mbarrier.expect(k_bar, TILE * D * 2)
            mbarrier.expect(v_bar, TILE * D * 2)
            for j in gl.static_range(JOIN):
                # past the end of the list a box lies outside of the tensor: zeros, and no traffic
                column = gl.load(indices + e + j, mask=e + j < hi, other=n_cols)
                first = column * KEYS + part * BOX
                load_box(
                    desc_k, k_boxes, k_bar, stage * JOIN + j, i_batch, kv_head, head % RATE, first, D, JOIN
                )
                load_box(
                    desc_v, v_boxes, v_bar, stage * JOIN + j, i_batch, kv_head, head % RATE, first, D, JOIN
                )
            it += 1
    return it


@gluon.jit
def producer(inputs, kept, streams, queue, lists, heads, grid, config):
    """The loading warp: q and grad_out of the rows, then the kept k and v of their lists."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    dtype: gl.constexpr = kept.qk.dtype
    q_boxes = reinterpret(kept.qk, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], inputs.q.layout)
    g_boxes = reinterpret(kept.gv, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], inputs.grad_out.layout)
    n_tiles = grid.n_rows * heads.batched
    n_cols = gl.cdiv(grid.kv_len, BLOCK)
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        i_batch, head = work.batch_head // heads.num, work.batch_head % heads.num
        query = grid.first_query + work.group * BLOCK
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = kept.full.index(slot)
            mbarrier.wait(kept.empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            load_tokens(inputs.q, q_boxes, full, slot, i_batch, head, query + w * 64, 64, D)
            load_tokens(inputs.grad_out, g_boxes, full, slot, i_batch, head, query + w * 64, 64, D)
        it = load_list(
            inputs.k, inputs.v, streams, lists.indices, work.lo, work.middle, it, work.batch_head, heads, n_cols, config.RATE,
            config,
        )  # fmt: skip
        if config.N_CLASSES == 2:
            it = load_list(
                inputs.k_far, inputs.v_far, streams, lists.indices, work.middle, work.hi, it, work.batch_head, heads, n_cols,
                config.FAR_RATE, config,
            )  # fmt: skip
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)


@gluon.jit
def find_lists(tile, lists, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py)."""
    batch_head, row = work_tile_coords(lists.order, tile, grid.n_rows, heads, 1, heads.per_kv)
    offsets = (
        lists.offsets + (((batch_head % heads.num) // heads.per_list) * grid.n_rows + row) * config.N_CLASSES
    )
    return batch_head, row, gl.load(offsets), gl.load(offsets + 1), gl.load(offsets + config.N_CLASSES)


@gluon.jit
def add_keys(sums, kept, slot, streams, stats, keys, it, query, terms, step_config, config):
    """Add the keys of a list to dq; also return the next place in the streams."""
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    KEYS: gl.constexpr = BLOCK // keys.RATE
    lo, hi = keys.lo, keys.hi
    if config.OPERANDS_IN_REGISTERS:
        operands = operands_in_registers(kept, slot, step_config.s_layout)
    n_tiles = gl.cdiv((hi - lo) * KEYS, TILE)
    last_column = gl.load(keys.indices + gl.minimum(lo + (TILE - 1) // KEYS, hi - 1), mask=lo < hi, other=0)
    for t in range(n_tiles):
        last_entry = gl.minimum(lo + ((t + 2) * TILE - 1) // KEYS, hi - 1)  # of the next tile: a step early
        next_last_column = gl.load(keys.indices + last_entry)
        if not config.OPERANDS_IN_REGISTERS:
            operands = operands_in_memory(kept, slot)
        mask = RowMask(keys, t, query, last_column, config.IS_CAUSAL)
        sums = step(sums, operands, streams, stats, it + t, mask, terms, step_config)
        last_column = next_last_column
    return sums, it + n_tiles


@gluon.jit
def consumer(
    W: gl.constexpr, desc_dq, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config
):
    """Warpgroup W: queries W * 64 to W * 64 + 63 of every row."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    dtype: gl.constexpr = kept.qk.dtype
    s_layout: gl.constexpr = product_layout(TILE)
    sum_layout: gl.constexpr = product_layout(D)
    step_config = StepConfig(False, "qk", False, False, DELTA_FIRST, s_layout, sum_layout, sum_layout)
    dq_boxes = reinterpret(kept.qk, dtype, [SLOTS * 2 * (D // 64), 1, 1, 64, 64], desc_dq.layout)
    terms = only_scaled(softmax_scale)
    n_tiles = grid.n_rows * heads.batched
    n_chunks = grid.n_rows * (BLOCK // CHUNK)
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        i_batch, head = work.batch_head // heads.num, work.batch_head % heads.num
        query = grid.first_query + work.group * BLOCK + W * 64
        position = grid.first_position + work.group * BLOCK + W * 64
        saved_rows = load_saved(saved, i_batch, head, work.batch_head, query, 0, saved.q_len, D)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(kept.full.index(slot), (i_tile // SLOTS) & 1)
        chunk = work.group * 2 + W
        chunk_stats = Stats + (work.batch_head.to(gl.int64) * n_chunks + chunk) * (2 * CHUNK)
        stats = stats_of_queries(
            saved_rows, kept.gv, None, slot, chunk_stats, (n_chunks - chunk) * CHUNK, None, s_layout
        )
        release_stored_before(kept.empty, i_tile, W, SLOTS)
        sums = GradSums(gl.zeros([64, D], gl.float32, layout=sum_layout), gl.to_tensor(0), None, None)
        keys = KeyList(lists.indices, work.lo, work.middle, head, grid.kv_len, None, config.RATE, BLOCK)
        sums, it = add_keys(sums, kept, slot, streams, stats, keys, it, position, terms, step_config, config)
        if config.N_CLASSES == 2:
            keys = KeyList(
                lists.indices, work.middle, work.hi, head, grid.kv_len, None, config.FAR_RATE, BLOCK
            )
            sums, it = add_keys(
                sums, kept, slot, streams, stats, keys, it, position, terms, step_config, config
            )
        # q is no longer needed: its memory holds dq until it is stored
        kept.qk.index(slot).store((sums.qk * softmax_scale).to(dtype))
        fence_async_shared()
        store_tokens(desc_dq, dq_boxes, slot, i_batch, head, query, D)
        release_stored(kept.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "stride_lb", "stride_lh", "stride_ls", "has_grad_lse", "n_rows", "num_heads", "n_batch_heads", "heads_per_kv", "heads_per_list", "first_row", "q_offset", "q_len", "kv_len", "v_dim",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def dilated_dq_kernel(
    desc_q, desc_grad_out, desc_k, desc_v, desc_k_far, desc_v_far, desc_dq, Stats, Out, Lse, GradLse, Offsets, Indices,
    WorkOrder, Counter, stride_ob, stride_os, stride_oh, stride_lb, stride_lh, stride_ls, has_grad_lse, n_rows, num_heads, n_batch_heads,
    heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, v_dim, softmax_scale, D: gl.constexpr, TILE: gl.constexpr,
    RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    OPERANDS_IN_REGISTERS: gl.constexpr, IS_CAUSAL: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    kept, streams, queue = shared_memory(desc_q.dtype, D, D, TILE, STAGES, SLOTS, STAGES, False)
    lists = BlockLists(Offsets, Indices, WorkOrder, WorkOrder, WorkOrder, Indices)
    saved = Saved(
        Out, stride_ob, stride_os, stride_oh, Lse, GradLse, stride_lb, stride_lh, stride_ls, has_grad_lse, q_len, v_dim
    )  # fmt: skip
    heads = Heads(num_heads, n_batch_heads, heads_per_kv, heads_per_list)
    grid = Grid(n_rows, first_row * BLOCK - q_offset, first_row * BLOCK, kv_len)
    inputs = Inputs(desc_q, desc_grad_out, desc_k, desc_v, desc_k_far, desc_v_far)
    config = Config(D, RATE, FAR_RATE, N_CLASSES, SLOTS, OPERANDS_IN_REGISTERS, IS_CAUSAL)
    n_tiles = n_rows * n_batch_heads
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_lists
    gl.warp_specialize(
        [
            (consumer, (W0, desc_dq, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config)),
            (consumer, (W1, desc_dq, kept, streams, queue, lists, Stats, saved, heads, grid, softmax_scale, config)),
            (producer, (inputs, kept, streams, queue, lists, heads, grid, config)),
            (scheduler_warp, (queue, Counter, n_tiles, FIND, lists, heads, grid, config)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
