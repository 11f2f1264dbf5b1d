"""Forward kernel for Hopper: a persistent, warp-specialised FlashAttention-3 whose next key tile comes from a list.

    one warp       takes tiles of 128 queries from a counter and publishes them (tile_scheduler.py)
    two warps      walk the block lists of the tiles and issue the TMA loads, one of q and k, one of v; those of the next tile
                   while the warpgroups still work on this one
    two warpgroups compute 64 queries each, one tile of keys after the other, in one of the orders of attend.py
(FlashAttention-3, Shah et al., arXiv:2407.08608, for the split into loading warps and computing warpgroups.)
At block size 128 both warpgroups have the same list. At block size 64 each has a row of its own, and a key block that both
rows see is loaded once: both loading warps walk the union of the two lists, `places` says where in it an entry is. Where heads
that share k and v also share their lists (HEADS_PAIRED), the warpgroups have the same row of two heads instead, so that all
loads are shared; `Heads` then counts pairs of heads.
Token dilation: a tile of keys consists of the kept keys of several entries; dropped keys are never loaded.
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

from ..gluon_names import aggregate
from .attend import (
    AttendConfig,
    KeyList,
    KeyRings,
    QueryTile,
    RingPlaces,
    Sums,
    attend,
    entries_of_list,
)
from .attend_terms import attend_with_terms
from .dropout import kept_share
from .forward_loads import producer
from .forward_results import ResultRows, by_factors, store_part, with_sink
from .forward_sequences import (
    NUMBERS_PER_SEQUENCE_TILE,
    find_sequence_lists,
    read_part,
    read_share,
)
from .forward_terms import ScoreArguments, terms_of_head
from .layouts import TILE_LAYOUT, product_layout
from .pipeline import PHASES, Ring, barriers, init_barriers
from .sequences import Layout, Sequences, total_groups
from .softmax import INFINITY, LOG2E, by_row, nothing_seen
from .tile_scheduler import (
    NUMBERS_PER_TILE,
    Heads,
    allocate_queue,
    block_lists,
    read_number,
    read_work_tile,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import boxes_of, release_stored, release_stored_before, store_tokens
from .value_sums import no_values

LN2 = gl.constexpr(0.6931471805599453)


@aggregate
class Inputs:
    """Tensor descriptors; `far` reads the keys kept in blocks of the second distance class."""

    q: tma.tensor_descriptor
    k: tma.tensor_descriptor
    v: tma.tensor_descriptor
    k_far: tma.tensor_descriptor
    v_far: tma.tensor_descriptor


@aggregate
class QuerySlots:
    """Shared memory for the q tiles of both warpgroups, and the barriers that tell when a slot is full and when it is empty."""

    tiles: gl.shared_memory_descriptor
    tails: gl.shared_memory_descriptor | gl.constexpr
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@aggregate
class Grid:
    """Sizes of the call: rows of blocks and groups of rows of 128 tokens, positions and lengths.

    sequences, layout: None where all batch elements have the positions of the layout.
    n_elements: None, or the batch elements of split rows: sequence s is a share of the keys of element s % n_elements, with
    lists s // n_elements.
    """

    n_groups: gl.tensor
    n_tiles: gl.tensor
    n_rows: gl.tensor
    first_row: gl.tensor
    q_offset: gl.tensor
    q_len: gl.tensor
    kv_len: gl.tensor
    sequences: Sequences | gl.constexpr
    layout: Layout | gl.constexpr
    n_elements: gl.tensor | gl.constexpr


@aggregate
class Results:
    """Where results go; out by strides, for tiles that are not stored whole, is None in plain calls, as are the sinks.

    Of split rows it is float32, for every share, as lse is.
    """

    desc_out: tma.tensor_descriptor
    lse: gl.tensor
    out: gl.tensor | gl.constexpr
    stride_ob: gl.tensor | gl.constexpr
    stride_os: gl.tensor | gl.constexpr
    stride_oh: gl.tensor | gl.constexpr
    v_head_dim: gl.tensor | gl.constexpr
    sinks: gl.tensor | gl.constexpr


@aggregate
class Config:
    """Constants of the kernel. D: columns of tiles of q and k, DV: of those of v, without their tails.

    QK_DIM: columns of q and k that are read; OUT_DIM: columns of out.
    """

    D: gl.constexpr
    QK_DIM: gl.constexpr
    DV: gl.constexpr
    OUT_DIM: gl.constexpr
    BLOCK_N: gl.constexpr
    BLOCK_SIZE: gl.constexpr
    RATE: gl.constexpr
    FAR_RATE: gl.constexpr
    N_CLASSES: gl.constexpr
    SLOTS: gl.constexpr
    SEQUENCES: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr
    OVERLAP: gl.constexpr
    UNROLL: gl.constexpr
    HAS_TERMS: gl.constexpr
    NEAREST_FIRST: gl.constexpr
    PAIRED: gl.constexpr  # two rows
    HEADS_PAIRED: gl.constexpr


@gluon.jit
def find_lists(tile, lists, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py)."""
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    PAIRED: gl.constexpr = config.PAIRED
    ROWS: gl.constexpr = 2 if PAIRED else 1
    batch_head, group = work_tile_coords(lists.order, tile, grid.n_groups, heads, 1, heads.per_kv)
    row = group * ROWS
    # the lists of the tile: of two rows, or of the classes of one
    first = (
        lists.offsets + (((batch_head % heads.num) // heads.per_list) * grid.n_rows + row) * config.N_CLASSES
    )
    n_lists = config.N_CLASSES
    if PAIRED:
        n_lists = gl.minimum(2, grid.n_rows - row)
    lo, middle, hi = gl.load(first), gl.load(first + 1), gl.load(first + n_lists)
    numbers = (batch_head, group, lo, middle, hi)
    if config.IS_CAUSAL or not config.EVEN_KV:
        row += grid.first_row
        counts = entries_of_list(lists.indices, lo, middle, row, grid.kv_len, BLOCK_SIZE, config.IS_CAUSAL)
        if PAIRED:
            row += 1
        numbers += counts + entries_of_list(
            lists.indices, middle, hi, row, grid.kv_len, BLOCK_SIZE, config.IS_CAUSAL
        )
    return numbers


@gluon.jit
def add_keys(
    q, rings, keys, places, n_visible, n_whole, sums, last, terms, scale_log2, attend_config, config
):
    """`attend`, with the terms of the scores where a call has any."""
    if config.HAS_TERMS:
        return attend_with_terms(q, rings, keys, places, n_visible, n_whole, sums, last, terms, attend_config)
    else:
        return attend(q, rings, keys, places, n_visible, n_whole, sums, last, scale_log2, attend_config)


@gluon.jit
def consumer(
    W: gl.constexpr, results, queries, rings, queue, lists, arguments, heads, grid, scale_log2, config
):
    """Warpgroup W: queries W * 64 to W * 64 + 63 of every tile."""
    D: gl.constexpr = config.D
    DV: gl.constexpr = config.DV
    BLOCK_N: gl.constexpr = config.BLOCK_N
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    SLOTS: gl.constexpr = config.SLOTS
    SEQUENCES: gl.constexpr = config.SEQUENCES
    SPLIT: gl.constexpr = grid.n_elements is not None
    HEADS_PAIRED: gl.constexpr = config.HEADS_PAIRED
    PAIRED: gl.constexpr = config.PAIRED
    ROWS: gl.constexpr = 2 if PAIRED else 1
    dtype: gl.constexpr = queries.tiles.dtype
    s_layout: gl.constexpr = product_layout(BLOCK_N)
    acc_layout: gl.constexpr = product_layout(DV)
    tail_layout: gl.constexpr = product_layout(64)
    attend_config = AttendConfig(
        BLOCK_N, config.QK_DIM, config.IS_CAUSAL, config.EVEN_KV and not SEQUENCES, config.OVERLAP, config.UNROLL, SEQUENCES,
        config.N_CLASSES == 1 and config.RATE == 1 and BLOCK_N <= BLOCK_SIZE, SEQUENCES and PAIRED, s_layout, acc_layout,
        tail_layout,
    )  # fmt: skip
    out_boxes = boxes_of(results.desc_out, queries.tiles, queries.tails)
    it = 0
    last = -1
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < grid.n_tiles:
        if SEQUENCES:
            share, part = (
                read_share(queue, i_tile, heads, grid, BLOCK_SIZE),
                read_part(queue, i_tile, W if PAIRED else 0, config.NEAREST_FIRST),
            )
            release_work_tile(queue, i_tile)
            i_sequence, i_batch, head, kv_len = share.i_sequence, share.i_batch, share.head, share.kv_len
            if SPLIT:
                i_sequence = i_batch  # its padding and its bias
            position0 = share.position0 + W * 64
            lo, hi, visible, whole = part.lo, part.lo + part.n, part.visible, part.whole
            n_left, left_places, right_place = part.n_left, part.left_places, part.right_place
        else:
            work = read_work_tile(queue, i_tile)
            visible, visible_2 = work.middle - work.lo, work.hi - work.middle
            whole, whole_2 = visible, visible_2
            if config.IS_CAUSAL or not config.EVEN_KV:
                visible, whole = read_number(queue, i_tile, 6), read_number(queue, i_tile, 7)
                visible_2, whole_2 = read_number(queue, i_tile, 8), read_number(queue, i_tile, 9)
            release_work_tile(queue, i_tile)
            i_batch, head = work.batch_head // heads.num, work.batch_head % heads.num
            i_sequence, kv_len = i_batch, grid.kv_len
            row = work.group * ROWS
            if HEADS_PAIRED:
                head = head * 2 + W
                position0 = (grid.first_row + row) * BLOCK_SIZE
            elif PAIRED:
                position0 = (grid.first_row + row + W) * BLOCK_SIZE
            else:
                position0 = (grid.first_row + row) * BLOCK_SIZE + W * 64
            n_left, left_places, right_place = None, None, None
            lo, hi = work.lo, work.middle
            if PAIRED and W == 1:
                lo, hi, visible, whole = hi, work.hi, visible_2, whole_2
        position = position0 + gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
        terms = 0
        if config.HAS_TERMS:
            num_heads = heads.num
            if HEADS_PAIRED:
                num_heads = heads.num * 2
            terms = terms_of_head(arguments, i_sequence, head, num_heads)
        m, l = nothing_seen()
        sums = Sums(no_values(rings.v, attend_config), m, l)
        release_stored_before(queries.empty, i_tile, W, SLOTS)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(queries.full.index(slot), (i_tile // SLOTS) & 1)
        q = QueryTile(
            queries.tiles, queries.tails, slot, position, position0, 0 if BLOCK_SIZE == 64 else W * 64
        )
        keys = KeyList(lists.indices, lo, hi, head, kv_len, n_left, config.RATE, BLOCK_SIZE)
        if PAIRED:
            # q of this tile was requested after all places before `it`, so those one round of the ring back have arrived
            last = gl.maximum(last, it - 1 - rings.k.tiles.shape[0])
            places = RingPlaces(it, lists.places + lo, n_left, left_places, right_place, True)
            sums, last = add_keys(
                q, rings, keys, places, visible, whole, sums, last, terms, scale_log2, attend_config, config
            )
            if SEQUENCES:
                it += share.n_places
            else:
                it += gl.load(lists.unions + (head // heads.per_list) * grid.n_groups + work.group)
        else:
            places = RingPlaces(it, lists.indices, None, None, None, False)
            sums, _ = add_keys(
                q, rings, keys, places, visible, whole, sums, it - 1, terms, scale_log2, attend_config, config
            )
            it += gl.cdiv((hi - lo) * (BLOCK_SIZE // config.RATE), BLOCK_N)
            if config.N_CLASSES == 2:
                keys = KeyList(
                    lists.indices, work.middle, work.hi, head, grid.kv_len, None, config.FAR_RATE, BLOCK_SIZE
                )
                places = RingPlaces(it, lists.indices, None, None, None, False)
                sums, _ = attend(
                    q, rings, keys, places, visible_2, whole_2, sums, it - 1, scale_log2, attend_config
                )
                it += gl.cdiv((work.hi - work.middle) * (BLOCK_SIZE // config.FAR_RATE), BLOCK_N)

        m, l = by_row(sums.m, sums.l, s_layout)
        factor = 1.0
        if results.sinks is not None:
            factor, m, l = with_sink(m, l, gl.load(results.sinks + head) * LOG2E)
        if arguments.seed is not None:
            factor = factor / kept_share(arguments.threshold)
        empty = l == 0.0
        l = gl.where(empty, 1.0, l)
        lse = gl.where(empty, -INFINITY, (m + gl.log2(l)) * LN2)
        if SEQUENCES:
            query = share.query0 + W * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, s_layout))
            is_query = (query >= share.first_query) & (query < share.end_query)
            i_result = share.i_sequence if SPLIT else i_batch
            lse_row = (i_result * heads.num + head).to(gl.int64) * grid.q_len
            gl.store(results.lse + lse_row + query, lse, mask=is_query)
        else:
            query = position - grid.q_offset
            of_lse = work.batch_head
            if HEADS_PAIRED:
                of_lse = of_lse * 2 + W
            gl.store(
                results.lse + of_lse.to(gl.int64) * grid.q_len + query,
                lse,
                mask=(query >= 0) & (query < grid.q_len),
            )
        out = by_factors(sums.acc.main, factor / l, acc_layout)
        out_tail = None
        if sums.acc.tail is not None:
            out_tail = by_factors(sums.acc.tail, factor / l, tail_layout)
        if not SPLIT:
            out = out.to(dtype)
            out_tile = queries.tiles.index(slot)  # q is no longer needed
            if DV < D:
                out_tile = out_tile.slice(0, DV, dim=1)
            out_tile.store(out)
            if out_tail is not None:
                out_tail = out_tail.to(dtype)
                queries.tails.index(slot).store(out_tail)
            fence_async_shared()
        if SPLIT:
            rows = ResultRows(i_result, head, share.query0 + W * 64, share.first_query, share.end_query)
            store_part(results, out, out_tail, rows)
        elif SEQUENCES:
            query0 = share.query0 + W * 64
            rows = ResultRows(i_batch, head, query0, share.first_query, share.end_query)
            if (query0 >= share.first_query) & (query0 + 64 <= share.end_query):
                store_tokens(
                    results.desc_out, out_boxes.main, slot, i_batch, head, query0, D, config.OUT_DIM, out_boxes.tails
                )  # fmt: skip
            else:
                store_part(results, out, out_tail, rows)
        else:
            query0 = position0 - grid.q_offset
            store_tokens(
                results.desc_out, out_boxes.main, slot, i_batch, head, query0, D, config.OUT_DIM, out_boxes.tails
            )  # fmt: skip
        release_stored(queries.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "n_layout_groups", "n_entries", "n_groups", "n_rows", "num_heads", "n_batch_heads", "first_row", "q_offset", "q_len",
    "kv_len", "heads_per_kv", "heads_per_list", "threshold", "n_sequences", "n_layout_rows", "n_layout_cols", "list_heads", "n_elements", "stride_bb",
    "stride_bh", "stride_be", "stride_pb", "stride_ob", "stride_os", "stride_oh",
    "v_head_dim",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def forward_kernel(
    desc_q, desc_k, desc_v, desc_k_far, desc_v_far, desc_out, Lse, Offsets, Indices, WorkOrder, Counter, Table, Starts,
    MaskIds, MaskTable, Padding, BlockIds, Bias, Slopes, Sinks, Seed, OutRows, n_layout_groups, n_entries, n_groups, n_rows, num_heads, n_batch_heads, first_row, q_offset, q_len, kv_len,
    heads_per_kv, heads_per_list, n_sequences, n_layout_rows, n_layout_cols, list_heads, n_elements, softcap, threshold, stride_bb, stride_bh,
    stride_be, stride_pb, stride_ob, stride_os, stride_oh, v_head_dim, softmax_scale, D: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, FAR_RATE: gl.constexpr, N_CLASSES: gl.constexpr,
    K_STAGES: gl.constexpr, V_STAGES: gl.constexpr, SLOTS: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    OVERLAP: gl.constexpr, UNROLL: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
    SEQUENCES: gl.constexpr, PACKED: gl.constexpr, QK_DIM: gl.constexpr, DV: gl.constexpr, HEADS_PAIRED: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 4 warps: the first warpgroup is the default partition.

    From Table to OutRows, and the numbers for them, what a call has not got is None. With SEQUENCES first_row is the layout's.
    """
    dtype: gl.constexpr = desc_q.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64 and not HEADS_PAIRED
    PHASES_USED: gl.constexpr = PHASES if PAIRED else 1
    D_MAIN: gl.constexpr = 128 if D == 192 else D
    DV_MAIN: gl.constexpr = 128 if DV == 192 else DV
    q_smem = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D_MAIN], TILE_LAYOUT)
    k_smem = gl.allocate_shared_memory(dtype, [K_STAGES, BLOCK_N, D_MAIN], TILE_LAYOUT)
    v_smem = gl.allocate_shared_memory(dtype, [V_STAGES, BLOCK_N, DV_MAIN], TILE_LAYOUT)
    q_tails, k_tails, v_tails = None, None, None
    if D == 192:
        q_tails = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, 64], TILE_LAYOUT)
    if D == 192 and QK_DIM == D:
        k_tails = gl.allocate_shared_memory(dtype, [K_STAGES, BLOCK_N, 64], TILE_LAYOUT)
    if DV == 192:
        v_tails = gl.allocate_shared_memory(dtype, [V_STAGES, BLOCK_N, 64], TILE_LAYOUT)
    queue = allocate_queue(NUMBERS_PER_SEQUENCE_TILE if SEQUENCES else NUMBERS_PER_TILE, 4)
    q_full = barriers(SLOTS * 2)
    q_empty = barriers(SLOTS * 2)
    k_full = barriers(PHASES_USED * K_STAGES)
    k_empty = barriers(K_STAGES)
    v_full = barriers(PHASES_USED * V_STAGES)
    v_empty = barriers(V_STAGES)
    init_barriers(q_full, 1, q_empty, 1)
    init_barriers(k_empty, 2)
    init_barriers(v_empty, 2)
    init_barriers(k_full, 1)
    init_barriers(v_full, 1)
    fence_async_shared()

    lists = block_lists(Offsets, Indices, WorkOrder, n_layout_groups, n_entries, 64 if PAIRED else 128)
    queries = QuerySlots(q_smem, q_tails, q_full, q_empty)
    rings = KeyRings(Ring(k_smem, k_full, k_empty, k_tails), Ring(v_smem, v_full, v_empty, v_tails))
    scale_log2 = softmax_scale * LOG2E
    heads = Heads(num_heads, n_batch_heads, heads_per_kv, heads_per_list)
    if SEQUENCES:
        sequences = Sequences(Table, Starts, n_sequences, q_len, kv_len, q_offset, PACKED)
        layout = Layout(n_layout_rows, n_layout_cols, first_row, list_heads, BLOCK_SIZE)
        n_tiles = total_groups(sequences, layout, False) * num_heads
        grid = Grid(
            n_groups, n_tiles, n_rows, first_row, q_offset, q_len, kv_len, sequences, layout, n_elements
        )
    else:
        grid = Grid(
            n_groups, n_groups * n_batch_heads, n_rows, first_row, q_offset, q_len, kv_len, None, None, None
        )
    inputs = Inputs(desc_q, desc_k, desc_v, desc_k_far, desc_v_far)
    results = Results(desc_out, Lse, OutRows, stride_ob, stride_os, stride_oh, v_head_dim, Sinks)
    HAS_TERMS: gl.constexpr = (
        MaskIds is not None
        or Padding is not None
        or Bias is not None
        or softcap is not None
        or Slopes is not None
        or Seed is not None
    )
    arguments = ScoreArguments(
        softmax_scale if HAS_TERMS else None, MaskIds, MaskTable, Padding, stride_pb, BlockIds, Bias, stride_bb, stride_bh,
        stride_be, softcap, Slopes, Seed, threshold,
    )  # fmt: skip
    config = Config(
        D_MAIN,
        QK_DIM,
        DV_MAIN,
        DV,
        BLOCK_N,
        BLOCK_SIZE,
        RATE,
        FAR_RATE,
        N_CLASSES,
        SLOTS,
        SEQUENCES,
        IS_CAUSAL,
        EVEN_KV,
        OVERLAP,
        UNROLL,
        HAS_TERMS,
        Slopes is not None,
        PAIRED,
        HEADS_PAIRED,
    )
    K: gl.constexpr = True
    V: gl.constexpr = False
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_sequence_lists if SEQUENCES else find_lists
    gl.warp_specialize(
        [
            (consumer, (W0, results, queries, rings, queue, lists, arguments, heads, grid, scale_log2, config)),
            (consumer, (W1, results, queries, rings, queue, lists, arguments, heads, grid, scale_log2, config)),
            (producer, (K, inputs, queries, rings, queue, lists.entries, heads, grid, config)),
            (producer, (V, inputs, queries, rings, queue, lists.entries, heads, grid, config)),
            (scheduler_warp, (queue, Counter, grid.n_tiles, FIND, lists, heads, grid, config)),
        ],
        [4, 1, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
