"""The sums of dq in memory, and the warp of the single pass that adds to them (backward_single_pass.py)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ..gluon_names import aggregate, async_atomic_add, reinterpret
from .lse_delta import CHUNK
from .tile_scheduler import WorkQueue, read_work_tile, release_work_tile, wait_work_tile
from .turns import additions, hand_over, wait_added, wait_turn

LINE = gl.constexpr(32)  # numbers of 4 bytes
PIECE_LINES = gl.constexpr(2 * CHUNK)  # of a chunk, by 64 of head_dim


@aggregate
class DqSums:
    """The sums of dq: their descriptor, and the tiles in shared memory that are added to them.

    scales: of the queries, in fixed point. turns, done: the turn of every entry of the lists, and how often those of a block were
    passed on, at its first chunk; passed: a queue of those to pass on (turns.py). None for what a call has not.
    """

    desc: tma.tensor_descriptor
    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    scales: gl.tensor | gl.constexpr
    turns: gl.tensor | gl.constexpr
    done: gl.tensor | gl.constexpr
    passed: WorkQueue | gl.constexpr


@gluon.jit
def add_tile(sums, boxes, n, place):
    """Add the n-th tile of dq to a place of the sums, and let the tile that comes next be written."""
    DQ_TILES: gl.constexpr = sums.tiles.shape[0]
    mbarrier.wait(sums.full.index(n % DQ_TILES), (n // DQ_TILES) & 1)
    async_atomic_add(sums.desc, [0, 0, place * PIECE_LINES, 0], boxes.index(n % DQ_TILES))
    tma.store_wait(DQ_TILES - 1)
    mbarrier.arrive(sums.empty.index((n + 1) % DQ_TILES), count=1, pred=n >= DQ_TILES - 1)


@gluon.jit
def adding_warp(sums, queue, lists, heads, grid, config):
    """Adds the tiles of dq to the sums, in the order of turns where there are any."""
    PAIRED: gl.constexpr = config.BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = config.BLOCK_SIZE // config.TILE
    PIECES: gl.constexpr = config.D // 64
    DQ_TILES: gl.constexpr = sums.tiles.shape[0]
    IN_TURN: gl.constexpr = sums.turns is not None
    boxes = reinterpret(sums.tiles, sums.tiles.dtype, [DQ_TILES, 1, 1, PIECE_LINES, LINE], sums.desc.layout)
    n_tiles = grid.n_groups * heads.batched
    n_chunks = grid.n_rows * (config.BLOCK_SIZE // CHUNK)
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        work = read_work_tile(queue, i_tile)
        release_work_tile(queue, i_tile)
        lo, hi = work.lo, work.middle
        first_head = work.batch_head % heads.num * heads.per_kv
        layout_head = first_head // heads.per_list
        index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
        if IN_TURN:
            turn = gl.load(sums.turns + lo, mask=lo < hi, other=0)
        for g in range(heads.per_kv):
            q_head = first_head + g
            if q_head // heads.per_list != layout_head:
                layout_head = q_head // heads.per_list
                offsets = lists.offsets + layout_head * grid.n_lists + work.group * LISTS
                lo, hi = gl.load(offsets), gl.load(offsets + 1)
                index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
                if IN_TURN:
                    turn = gl.load(sums.turns + lo, mask=lo < hi, other=0)
            first_chunk = (work.batch_head * heads.per_kv + g) * n_chunks
            if IN_TURN:
                seen = additions(sums.done + first_chunk + index * SUB)
            if PAIRED:
                n_steps = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
                entry = gl.load(lists.entries + lo, mask=n_steps > 0, other=0)
                for i in range(n_steps):
                    chunk = first_chunk + (entry >> 1)
                    entry = gl.load(lists.entries + lo + gl.minimum(i + 1, n_steps - 1))
                    for piece in gl.static_range(PIECES):
                        add_tile(sums, boxes, it * PIECES + piece, chunk * PIECES + piece)
                    it += 1
            else:
                for e in range(lo, hi):
                    e_next = gl.where(e + 1 < hi, e + 1, lo)
                    index_next = gl.load(lists.indices + e_next)
                    if IN_TURN:
                        turn_next = gl.load(sums.turns + e_next)
                    for sub in gl.static_range(SUB):
                        place = it + sub
                        chunk = first_chunk + index * SUB + sub
                        if IN_TURN and sub == 0:
                            wait_turn(sums.done + chunk, turn, seen)
                        if IN_TURN and sub == SUB - 1:  # of the next block, a step before it is waited for
                            seen = additions(sums.done + first_chunk + index_next * SUB)
                        for piece in gl.static_range(PIECES):
                            add_tile(sums, boxes, place * PIECES + piece, chunk * PIECES + piece)
                    if IN_TURN:
                        wait_added(index)
                        hand_over(sums.passed, it // SUB, first_chunk + index * SUB)
                    it += SUB
                    index = index_next
                    if IN_TURN:
                        turn = turn_next
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    if IN_TURN:
        hand_over(sums.passed, it // SUB, -1)
    tma.store_wait(0)
