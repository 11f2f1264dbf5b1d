"""Backward with token dilation for Hopper, the dkdv pass: that of backward.py without the dropped keys.

Blocks have 128 tokens. A program takes 128 keys of one residue: of GROUP_SIZE = max(rates) columns, 128 / GROUP_SIZE keys
each. Their k and v are kept; q and grad_out of every row that sees one of the columns stream by. Column groups and the lists
of their rows, with a bit for every column that is seen, come from column_groups.py. If a head drops the residue at a distance, its
program skips that list; a warpgroup skips rows that see none of its columns. So a kept key costs no more than a key without
dilation where the same rows see all columns of a group.
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
from .backward_step import (
    BLOCK,
    GradSums,
    StepConfig,
    load_stats,
    operands_in_memory,
    operands_in_registers,
    shared_memory,
    step,
)
from .backward_terms import only_scaled
from .layouts import product_layout
from .lse_delta import QueryStats
from .tile_scheduler import (
    Heads,
    read_number,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import load_box, load_tokens, release_stored, release_stored_before, store_box


@aggregate
class Inputs:
    """Tensor descriptors."""

    k: tma.tensor_descriptor
    v: tma.tensor_descriptor
    q: tma.tensor_descriptor
    grad_out: tma.tensor_descriptor


@aggregate
class Grid:
    """Sizes of the call; where the queries of the first row are in their tensor, and their position."""

    n_groups: gl.tensor
    n_layout_groups: gl.tensor
    n_rows: gl.tensor
    first_query: gl.tensor
    first_position: gl.tensor


@aggregate
class Config:
    """Constants of the kernel."""

    D: gl.constexpr
    GROUP_SIZE: gl.constexpr
    RATE: gl.constexpr
    FAR_RATE: gl.constexpr
    N_CLASSES: gl.constexpr
    SLOTS: gl.constexpr
    OPERANDS_IN_REGISTERS: gl.constexpr
    IS_CAUSAL: gl.constexpr


@aggregate
class ColumnGroups:
    """The parts of a work order (`ColumnGroupOrder` in column_groups.py): distance between the columns of a group, work order, offsets of the lists, and the lists."""

    stride: gl.tensor
    order: gl.tensor
    offsets: gl.tensor
    pairs: gl.tensor


@aggregate
class KeyTile:
    """A published tile: keys of one residue of a group of columns, and the list of its first head."""

    batch_head: gl.tensor
    group: gl.tensor
    residue: gl.tensor
    lo: gl.tensor
    hi: gl.tensor


@aggregate
class RowList:
    """Rows that see columns of a group, each with the columns that it sees as bits."""

    pairs: gl.tensor
    lo: gl.tensor
    hi: gl.tensor


@aggregate
class HalfGroup:
    """The columns of a warpgroup: the first, the distance from one to the next, and the residue of the keys."""

    first: gl.tensor
    stride: gl.tensor
    residue: gl.tensor


@aggregate
class ColumnMask:
    """What is visible in p of a tile of keys: `bits` for the columns that the row sees; `query`: position of the first query."""

    bits: gl.tensor
    columns: HalfGroup
    query: gl.tensor
    GROUP_SIZE: gl.constexpr
    IS_CAUSAL: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where the row of a query does not see the column, or a causal query not the key."""
        IN_HALF: gl.constexpr = self.GROUP_SIZE // 2
        KEYS: gl.constexpr = BLOCK // self.GROUP_SIZE
        columns = self.columns
        kept = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
        if self.bits != (1 << IN_HALF) - 1:
            p = gl.where((((self.bits >> (kept // KEYS)) & 1) != 0)[:, None], p, 0.0)
        if self.IS_CAUSAL:
            last_column = columns.first + (IN_HALF - 1) * columns.stride
            if (last_column + 1) * BLOCK > self.query + 1:
                key = (
                    (columns.first + kept // KEYS * columns.stride) * BLOCK
                    + columns.residue
                    + kept % KEYS * self.GROUP_SIZE
                )
                query = self.query + gl.arange(0, p.shape[1], layout=gl.SliceLayout(0, layout))
                p = gl.where(key[:, None] <= query[None, :], p, 0.0)
        return p


@gluon.jit
def column_groups(WorkOrder, n_layout_groups, N_CLASSES: gl.constexpr):
    """The parts of a work order."""
    offsets = WorkOrder + 2 + n_layout_groups
    return ColumnGroups(gl.load(WorkOrder), WorkOrder + 1, offsets, offsets + n_layout_groups * N_CLASSES + 1)


@gluon.jit
def column_of_group(group, member, stride, GROUP_SIZE: gl.constexpr):
    """Which column is a member of a group."""
    return group // stride * (stride * GROUP_SIZE) + member * stride + group % stride


@gluon.jit
def key_tile_coords(order, tile, n_groups, heads, GROUP_SIZE: gl.constexpr):
    """(batch and kv head, group and residue as one number) of a tile; first all tiles with the residue of their first head."""
    n_of_residue = n_groups * heads.batched
    batch_head, group = work_tile_coords(order, tile % n_of_residue, n_groups, heads, heads.per_kv, 1)
    first_head = (batch_head % heads.num) * heads.per_kv
    return batch_head, group * GROUP_SIZE + (first_head + tile // n_of_residue) % GROUP_SIZE


@gluon.jit
def list_of_head(offsets, first_list, residue, head, config):
    """Start and end of the rows that see a tile: the lists, one after the other, of the distance classes in which the head keeps its keys."""
    lo = gl.load(offsets + first_list)
    hi = gl.load(offsets + first_list + config.N_CLASSES)
    middle = hi
    if config.N_CLASSES == 2:
        middle = gl.load(offsets + first_list + 1)
        if residue % config.FAR_RATE != head % config.FAR_RATE:
            hi = middle
    if residue % config.RATE != head % config.RATE:
        lo = middle
    return lo, hi


@gluon.jit
def read_key_tile(queue, i_tile):
    """The i_tile-th tile of this program, as `find_lists` gives it."""
    return KeyTile(
        read_number(queue, i_tile, 1), read_number(queue, i_tile, 2), read_number(queue, i_tile, 3),
        read_number(queue, i_tile, 4), read_number(queue, i_tile, 5),
    )  # fmt: skip


@gluon.jit
def load_rows(inputs, streams, rows, stats, it, i_batch, head, first_query, D: gl.constexpr):
    """Load q, grad_out, lse and delta of the rows of a list; return the next place in the streams."""
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    dtype: gl.constexpr = streams.qk.tiles.dtype
    SUB: gl.constexpr = BLOCK // TILE
    lo, hi = rows.lo, rows.hi
    q_boxes = reinterpret(streams.qk.tiles, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], inputs.q.layout)
    g_boxes = reinterpret(
        streams.gv.tiles, dtype, [STAGES * (D // 64), 1, 1, TILE, 64], inputs.grad_out.layout
    )
    row = gl.load(rows.pairs + 2 * lo, mask=lo < hi, other=0)
    lse, delta = load_stats(stats, row, 0, TILE, SUB, False)
    for i in range((hi - lo) * SUB):
        next_row = gl.load(rows.pairs + 2 * gl.minimum(lo + (i + 1) // SUB, hi - 1))
        query = first_query + row * BLOCK + (i % SUB) * TILE
        stage = it % STAGES
        q_bar, g_bar = streams.qk.full_barrier(it), streams.gv.full_barrier(it)
        mbarrier.wait(streams.qk.empty.index(stage), ((it // STAGES) & 1) ^ 1)
        load_tokens(inputs.q, q_boxes, q_bar, stage, i_batch, head, query, TILE, D)
        load_tokens(inputs.grad_out, g_boxes, g_bar, stage, i_batch, head, query, TILE, D)
        streams.lse.index(stage).store(lse)
        streams.delta.index(stage).store(delta)
        mbarrier.arrive(q_bar, count=1)
        it += 1
        row = next_row
        # they arrive while their stage is waited for
        lse, delta = load_stats(stats, row, (i + 1) % SUB, TILE, SUB, False)
    return it


@gluon.jit
def producer(inputs, kept, streams, queue, WorkOrder, Stats, heads, grid, config):
    """The loading warp: k and v of column groups, then q and grad_out of the rows that see them."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    GROUP_SIZE: gl.constexpr = config.GROUP_SIZE
    dtype: gl.constexpr = kept.qk.dtype
    KEYS: gl.constexpr = BLOCK // GROUP_SIZE
    IN_HALF: gl.constexpr = GROUP_SIZE // 2
    N_BOXES: gl.constexpr = SLOTS * GROUP_SIZE * (D // 64)
    k_boxes = reinterpret(kept.qk, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], inputs.k.layout)
    v_boxes = reinterpret(kept.gv, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], inputs.v.layout)
    groups = column_groups(WorkOrder, grid.n_layout_groups, config.N_CLASSES)
    n_tiles = GROUP_SIZE * grid.n_groups * heads.batched
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_key_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.hi
        i_batch, kv_head = work.batch_head // heads.num, work.batch_head % heads.num
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = kept.full.index(slot)
            mbarrier.wait(kept.empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            mbarrier.expect(full, 64 * D * 2)
            mbarrier.expect(full, 64 * D * 2)  # both arrivals of `full`: with the bytes of k, and of v
            for j in gl.static_range(IN_HALF):
                first = column_of_group(work.group, w * IN_HALF + j, groups.stride, GROUP_SIZE) * KEYS
                load_box(
                    inputs.k, k_boxes, full, slot * IN_HALF + j, i_batch, kv_head, work.residue, first, D, IN_HALF
                )  # fmt: skip
                load_box(
                    inputs.v, v_boxes, full, slot * IN_HALF + j, i_batch, kv_head, work.residue, first, D, IN_HALF
                )  # fmt: skip
        for g in range(heads.per_kv):
            head = kv_head * heads.per_kv + g
            stats = Stats + (work.batch_head * heads.per_kv + g).to(gl.int64) * grid.n_rows * (BLOCK * 2)
            if g > 0:
                first_list = ((head // heads.per_list) * grid.n_groups + work.group) * config.N_CLASSES
                lo, hi = list_of_head(groups.offsets, first_list, work.residue, head, config)
            rows = RowList(groups.pairs, lo, hi)
            it = load_rows(inputs, streams, rows, stats, it, i_batch, head, grid.first_query, D)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)


@gluon.jit
def find_lists(tile, WorkOrder, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py), with the list of its first head."""
    groups = column_groups(WorkOrder, grid.n_layout_groups, config.N_CLASSES)
    batch_head, place = key_tile_coords(groups.order, tile, grid.n_groups, heads, config.GROUP_SIZE)
    group, residue = place // config.GROUP_SIZE, place % config.GROUP_SIZE
    head = (batch_head % heads.num) * heads.per_kv
    first_list = ((head // heads.per_list) * grid.n_groups + group) * config.N_CLASSES
    lo, hi = list_of_head(groups.offsets, first_list, residue, head, config)
    return batch_head, group, residue, lo, hi


@gluon.jit
def add_rows(
    W: gl.constexpr, sums, kept, slot, streams, rows, columns, it, first_position, terms, step_config, config
):  # fmt: skip
    """Add the queries of the rows of a list to dk and dv; also return the next place in the streams."""
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    SUB: gl.constexpr = BLOCK // TILE
    IN_HALF: gl.constexpr = config.GROUP_SIZE // 2
    lo, hi = rows.lo, rows.hi
    if config.OPERANDS_IN_REGISTERS:
        operands = operands_in_registers(kept, slot, step_config.s_layout)
    row = gl.load(rows.pairs + 2 * lo, mask=lo < hi, other=0)
    bits = gl.load(rows.pairs + 2 * lo + 1, mask=lo < hi, other=0)
    for i in range((hi - lo) * SUB):
        # of the next step: requested a step early
        pair = rows.pairs + 2 * gl.minimum(lo + (i + 1) // SUB, hi - 1)
        next_row, next_bits = gl.load(pair), gl.load(pair + 1)
        own_bits = (bits >> (W * IN_HALF)) & ((1 << IN_HALF) - 1)
        query = first_position + row * BLOCK + (i % SUB) * TILE
        if own_bits == 0:
            streams.qk.wait_full(it)
            streams.gv.wait_full(it)
            streams.qk.consumer_release(it)
        else:
            if not config.OPERANDS_IN_REGISTERS:
                operands = operands_in_memory(kept, slot)
            mask = ColumnMask(own_bits, columns, query, config.GROUP_SIZE, config.IS_CAUSAL)
            sums = step(sums, operands, streams, QueryStats(0.0, 0.0), it, mask, terms, step_config)
        it += 1
        row, bits = next_row, next_bits
    return sums, it


@gluon.jit
def consumer(
    W: gl.constexpr, desc_dk, desc_dv, kept, streams, queue, WorkOrder, heads, grid, softmax_scale, config
):
    """Warpgroup W: one half of the columns of every tile."""
    D: gl.constexpr = config.D
    SLOTS: gl.constexpr = config.SLOTS
    GROUP_SIZE: gl.constexpr = config.GROUP_SIZE
    dtype: gl.constexpr = kept.qk.dtype
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    KEYS: gl.constexpr = BLOCK // GROUP_SIZE
    IN_HALF: gl.constexpr = GROUP_SIZE // 2
    N_BOXES: gl.constexpr = SLOTS * GROUP_SIZE * (D // 64)
    s_layout: gl.constexpr = product_layout(TILE)
    sum_layout: gl.constexpr = product_layout(D)
    step_config = StepConfig(True, "both", False, False, DELTA_FIRST, s_layout, sum_layout, sum_layout)
    dk_boxes = reinterpret(kept.qk, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_dk.layout)
    dv_boxes = reinterpret(kept.gv, dtype, [N_BOXES, 1, 1, KEYS, 1, 64], desc_dv.layout)
    groups = column_groups(WorkOrder, grid.n_layout_groups, config.N_CLASSES)
    terms = only_scaled(softmax_scale)
    n_tiles = GROUP_SIZE * grid.n_groups * heads.batched
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_key_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.hi
        i_batch, kv_head = work.batch_head // heads.num, work.batch_head % heads.num
        columns = HalfGroup(
            column_of_group(work.group, W * IN_HALF, groups.stride, GROUP_SIZE), groups.stride, work.residue
        )
        sums = GradSums(
            gl.zeros([64, D], gl.float32, layout=sum_layout), gl.zeros([64, D], gl.float32, layout=sum_layout), None, None
        )  # fmt: skip
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(kept.full.index(slot), (i_tile // SLOTS) & 1)
        release_stored_before(kept.empty, i_tile, W, SLOTS)
        for g in range(heads.per_kv):
            if g > 0:
                head = kv_head * heads.per_kv + g
                first_list = ((head // heads.per_list) * grid.n_groups + work.group) * config.N_CLASSES
                lo, hi = list_of_head(groups.offsets, first_list, work.residue, head, config)
            rows = RowList(groups.pairs, lo, hi)
            sums, it = add_rows(
                W, sums, kept, slot, streams, rows, columns, it, grid.first_position, terms, step_config, config
            )  # fmt: skip
        # k and v are no longer needed: their memory holds dk and dv until they are stored
        kept.qk.index(slot).store((sums.qk * softmax_scale).to(dtype))
        kept.gv.index(slot).store(sums.v.to(dtype))
        fence_async_shared()
        for j in gl.static_range(IN_HALF):
            first = column_of_group(work.group, W * IN_HALF + j, groups.stride, GROUP_SIZE) * KEYS
            store_box(
                desc_dk, dk_boxes, slot * IN_HALF + j, i_batch, kv_head, work.residue, first, D, IN_HALF
            )
            store_box(
                desc_dv, dv_boxes, slot * IN_HALF + j, i_batch, kv_head, work.residue, first, D, IN_HALF
            )
        release_stored(kept.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_groups", "n_layout_groups", "n_rows", "num_kv_heads", "n_batch_kv_heads", "heads_per_kv", "heads_per_list", "first_row",
    "q_offset",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def dilated_dkdv_kernel(
    desc_k, desc_v, desc_q, desc_grad_out, desc_dk, desc_dv, Stats, WorkOrder, Counter, n_groups, n_layout_groups, n_rows,
    num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list, first_row, q_offset, softmax_scale, D: gl.constexpr,
    TILE: gl.constexpr, GROUP_SIZE: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    STAGES: gl.constexpr, SLOTS: gl.constexpr, OPERANDS_IN_REGISTERS: gl.constexpr, IS_CAUSAL: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition."""
    kept, streams, queue = shared_memory(desc_k.dtype, D, D, TILE, STAGES, SLOTS, STAGES, True)
    heads = Heads(num_kv_heads, n_batch_kv_heads, heads_per_kv, heads_per_list)
    grid = Grid(n_groups, n_layout_groups, n_rows, first_row * BLOCK - q_offset, first_row * BLOCK)
    inputs = Inputs(desc_k, desc_v, desc_q, desc_grad_out)
    config = Config(D, GROUP_SIZE, RATE, FAR_RATE, N_CLASSES, SLOTS, OPERANDS_IN_REGISTERS, IS_CAUSAL)
    n_tiles = GROUP_SIZE * n_groups * n_batch_kv_heads
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_lists
    gl.warp_specialize(
        [
            (consumer, (W0, desc_dk, desc_dv, kept, streams, queue, WorkOrder, heads, grid, softmax_scale, config)),
            (consumer, (W1, desc_dk, desc_dv, kept, streams, queue, WorkOrder, heads, grid, softmax_scale, config)),
            (producer, (inputs, kept, streams, queue, WorkOrder, Stats, heads, grid, config)),
            (scheduler_warp, (queue, Counter, n_tiles, FIND, WorkOrder, heads, grid, config)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
