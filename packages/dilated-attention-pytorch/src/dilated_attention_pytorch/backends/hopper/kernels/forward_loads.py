"""The two loading warps of the forward kernel (forward.py): q and the tiles of k that the lists of a work tile name, or of v."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..gluon_names import aggregate, reinterpret
from .forward_sequences import ends_of_lists, read_part, read_share
from .tile_scheduler import read_work_tile, release_work_tile, wait_work_tile
from .tma import Boxes, boxes_of, load_box, load_tokens


@aggregate
class KeySource:
    """Where the tiles of a list are loaded from: KEYS kept keys of every listed column, in JOIN boxes of BOX tokens.

    first_key: where position 0 is in memory.
    """

    columns: gl.tensor
    hi: gl.tensor
    n_cols: gl.tensor
    i_batch: gl.tensor
    kv_head: gl.tensor
    residue: gl.tensor
    first_key: gl.tensor | gl.constexpr
    KEYS: gl.constexpr
    BOX: gl.constexpr
    JOIN: gl.constexpr


@gluon.jit
def ring_boxes(desc, ring, BOX: gl.constexpr, JOIN: gl.constexpr):
    """The tiles of a ring as JOIN boxes each, of the tokens of a residue."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    N_BOXES: gl.constexpr = STAGES * (ring.tiles.shape[2] // 64) * JOIN
    main = reinterpret(ring.tiles, desc.dtype, [N_BOXES, 1, 1, BOX, 1, 64], desc.layout)
    if ring.tails is None:
        return Boxes(main, None)
    else:
        return Boxes(
            main, reinterpret(ring.tails, desc.dtype, [STAGES * JOIN, 1, 1, BOX, 1, 64], desc.layout)
        )


@gluon.jit
def load_tile(desc, boxes, ring, source, e, column, part, it, one_only, COLUMNS: gl.constexpr):
    """Fill place `it` of a ring, once it is empty, with a part of a column, or with the columns from entry e on.

    one_only: only one warpgroup wants the tile; the stage is released for the other.
    """
    BOX: gl.constexpr = source.BOX
    JOIN: gl.constexpr = source.JOIN
    D: gl.constexpr = ring.tiles.shape[2]
    STAGES: gl.constexpr = ring.tiles.shape[0]
    stage = it % STAGES
    mbarrier.wait(ring.empty.index(stage), ((it // STAGES) & 1) ^ 1)
    mbarrier.arrive(ring.empty.index(stage), count=1, pred=one_only)
    bar = ring.full_barrier(it)
    mbarrier.expect(bar, BOX * JOIN * ((COLUMNS + 63) // 64) * 128)
    load_box(
        desc, boxes.main, bar, stage * JOIN, source.i_batch, source.kv_head, source.residue,
        source.first_key + column * source.KEYS + part * BOX, D, JOIN, COLUMNS, boxes.tails,
    )  # fmt: skip
    for j in gl.static_range(1, JOIN):
        # past the end of the list a box lies outside of the tensor: zeros, and no traffic
        other = gl.load(source.columns + e + j, mask=e + j < source.hi, other=source.n_cols)
        load_box(
            desc, boxes.main, bar, stage * JOIN + j, source.i_batch, source.kv_head, source.residue, other * source.KEYS,
            D, JOIN, COLUMNS, boxes.tails,
        )  # fmt: skip


@gluon.jit
def pass_place(LOADS_K: gl.constexpr, rings, it):
    """Give place `it` to a block that no query of the tile sees: nothing is loaded, and no warpgroup wants it.

    With no warpgroup to wait for, the ring of k waits for that of v, so that it is never phases ahead.
    """
    ring = rings.k if LOADS_K else rings.v
    stage = it % ring.tiles.shape[0]
    mbarrier.wait(ring.empty.index(stage), ((it // ring.tiles.shape[0]) & 1) ^ 1)
    mbarrier.arrive(ring.empty.index(stage), count=2)
    mbarrier.arrive(ring.full_barrier(it), count=1)
    if LOADS_K:
        rings.v.wait_full(it)


@aggregate
class LoadedEntries:
    """Which entries of a list are loaded: from lo to hi.

    end: None, or of merged lists, only columns before it are loaded; the others have a place all the same.
    left_places: None, or so many from lo on come first, the last of them first, of which columns before left_end are loaded;
    then those from entry lo + right_place on, of which the other columns are.
    """

    columns: gl.tensor
    lo: gl.tensor
    hi: gl.tensor
    end: gl.tensor | gl.constexpr
    left_places: gl.tensor | gl.constexpr
    right_place: gl.tensor | gl.constexpr
    left_end: gl.tensor | gl.constexpr

    @gluon.jit
    def column(self, e):
        """What stands in entry e in the order of loading, and whether it is loaded."""
        if self.left_places is None:
            column = gl.load(self.columns + e)
            is_loaded = True
            if self.end is not None:
                is_loaded = column >> 1 < self.end
        else:
            i = e - self.lo
            is_left = i < self.left_places
            place = gl.where(is_left, self.left_places - 1 - i, self.right_place + i - self.left_places)
            column = gl.load(self.columns + self.lo + place)
            is_loaded = True
            if self.end is not None:
                is_loaded = (column >> 1 < self.end) & ((column >> 1 < self.left_end) == is_left)
        return column, is_loaded


@gluon.jit
def load_list(
    LOADS_K: gl.constexpr, desc, rings, entries, it, i_batch, head, first_key, heads, n_cols, RATE: gl.constexpr, config
):  # fmt: skip
    """Load the tiles of k, or of v, of a list; return the next place in the ring."""
    ring = rings.k if LOADS_K else rings.v
    COLUMNS: gl.constexpr = config.QK_DIM if LOADS_K else config.OUT_DIM
    BLOCK_N: gl.constexpr = config.BLOCK_N
    PAIRED: gl.constexpr = config.PAIRED
    KEYS: gl.constexpr = config.BLOCK_SIZE // RATE
    BOX: gl.constexpr = KEYS if KEYS < BLOCK_N else BLOCK_N
    JOIN: gl.constexpr = BLOCK_N // BOX
    boxes = ring_boxes(desc, ring, BOX, JOIN)
    columns, lo, hi = entries.columns, entries.lo, entries.hi
    source = KeySource(
        columns, hi, n_cols, i_batch, head // heads.per_kv, head % RATE, first_key, KEYS, BOX, JOIN
    )
    for e in range(lo, hi, JOIN):
        column, is_loaded = entries.column(e)
        if not is_loaded:
            pass_place(LOADS_K, rings, it)
            it += 1
        elif column >= 0:  # negative (block size 64 only): behind the blocks of the group
            one_only = False
            if PAIRED:
                one_only = (column & 1) == 0
                column = column >> 1
            for part in gl.static_range(KEYS // BOX):
                load_tile(desc, boxes, ring, source, e, column, part, it, one_only, COLUMNS)
                it += 1
    return it


@gluon.jit
def producer(
    LOADS_K: gl.constexpr, inputs, queries, rings, queue, columns, heads, grid, config
):  # fmt: skip
    """A loading warp: q and k of the tiles, or v.

    One warp for both would not load k while it waits for a stage of v, which is in use longer.
    """
    PAIRED: gl.constexpr = config.PAIRED
    ROWS: gl.constexpr = 2 if PAIRED else 1
    SLOTS: gl.constexpr = config.SLOTS
    desc, desc_far = inputs.v, inputs.v_far
    if LOADS_K:
        desc, desc_far = inputs.k, inputs.k_far
    q_boxes = boxes_of(inputs.q, queries.tiles, queries.tails)
    n_cols = gl.cdiv(grid.kv_len, config.BLOCK_SIZE)
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < grid.n_tiles:
        first_key = 0
        if config.SEQUENCES:
            share = read_share(queue, i_tile, heads, grid, config.BLOCK_SIZE)
            first = read_part(queue, i_tile, 0, config.NEAREST_FIRST)
            release_work_tile(queue, i_tile)
            i_batch, head, query0, first_key = share.i_batch, share.head, share.query0, share.kv_start
            # merged lists begin where the first of them does
            end, left_end = None, None
            if PAIRED:
                block_row = share.position0 // config.BLOCK_SIZE
                end, left_end = ends_of_lists(block_row, share.kv_len, ROWS, config)
            entries = LoadedEntries(
                columns,
                first.lo,
                first.lo + share.n_places,
                end,
                first.left_places,
                first.right_place,
                left_end,
            )
        else:
            work = read_work_tile(queue, i_tile)
            release_work_tile(queue, i_tile)
            i_batch, head = work.batch_head // heads.num, work.batch_head % heads.num
            query0 = (grid.first_row + work.group * ROWS) * config.BLOCK_SIZE - grid.q_offset
            entries = LoadedEntries(
                columns, work.lo, work.hi if PAIRED else work.middle, None, None, None, None
            )
        if LOADS_K:
            for w in gl.static_range(2):
                slot = (i_tile % SLOTS) * 2 + w
                mbarrier.wait(queries.empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
                if config.HEADS_PAIRED:
                    load_tokens(
                        inputs.q, q_boxes.main, queries.full.index(slot), slot, i_batch, head * 2 + w, query0, 64, config.D,
                        config.QK_DIM, q_boxes.tails,
                    )  # fmt: skip
                else:
                    load_tokens(
                        inputs.q, q_boxes.main, queries.full.index(slot), slot, i_batch, head, query0 + w * 64, 64, config.D,
                        config.QK_DIM, q_boxes.tails,
                    )  # fmt: skip
        it = load_list(
            LOADS_K, desc, rings, entries, it, i_batch, head, first_key, heads, n_cols, config.RATE, config
        )
        if config.N_CLASSES == 2:
            entries = LoadedEntries(columns, work.middle, work.hi, None, None, None, None)
            it = load_list(
                LOADS_K, desc_far, rings, entries, it, i_batch, head, first_key, heads, n_cols, config.FAR_RATE, config
            )  # fmt: skip
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
