"""The loading warp of the backward kernels (backward.py, backward_single_pass.py): kept tiles, then streamed ones."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .backward_step import load_stats
from .backward_tiles import read_sequence_tile, windows_of_head
from .lse_delta import CHUNK
from .tile_scheduler import read_work_tile, release_work_tile, wait_work_tile
from .tma import boxes_of, load_tokens


@gluon.jit
def stats_of_head(Stats, work, head, heads_per_tile, grid, config):
    """lse and delta of the queries of one of the query heads of a tile, from the layout's first row on."""
    if config.SEQUENCES:
        q_head = work.head * heads_per_tile + head
        return Stats + (q_head.to(gl.int64) * grid.n_chunks + work.chunk) * (2 * CHUNK)
    else:
        batch_head = work.batch_head * heads_per_tile + head
        return Stats + batch_head.to(gl.int64) * grid.n_rows * (config.BLOCK_SIZE * 2)


@gluon.jit
def pass_place(streams, it, DKDV: gl.constexpr):
    """Give a place to a block that takes no part: nothing is loaded, and no warpgroup wants it."""
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    mbarrier.wait(streams.qk.empty.index(it % STAGES), ((it // STAGES) & 1) ^ 1)
    mbarrier.arrive(streams.qk.empty.index(it % STAGES), count=2)
    mbarrier.arrive(streams.qk.full_barrier(it), count=2 if DKDV else 1)
    mbarrier.arrive(streams.gv.full_barrier(it), count=1)


@gluon.jit
def producer(inputs, kept, streams, queue, lists, Stats, heads, grid, config):
    """The loading warp: the kept tiles, then the streamed tiles of their lists, in the dkdv pass also lse and delta."""
    D: gl.constexpr = config.D
    DV: gl.constexpr = config.DV
    D_MAIN: gl.constexpr = kept.qk.shape[2]
    DV_MAIN: gl.constexpr = kept.gv.shape[2]
    TILE: gl.constexpr = config.TILE
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    STAGES: gl.constexpr = config.STAGES
    SLOTS: gl.constexpr = config.SLOTS
    DKDV: gl.constexpr = config.DKDV
    SEQUENCES: gl.constexpr = config.SEQUENCES
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    kept_qk = boxes_of(inputs.kept_qk, kept.qk, kept.qk_tails)
    kept_gv = boxes_of(inputs.kept_gv, kept.gv, kept.gv_tails)
    qk_boxes = boxes_of(inputs.qk, streams.qk.tiles, streams.qk.tails)
    gv_boxes = boxes_of(inputs.gv, streams.gv.tiles, streams.gv.tails)
    heads_per_tile = 1
    if DKDV:
        heads_per_tile = heads.per_kv
    if SEQUENCES:
        n_tiles = grid.n_tiles
    else:
        n_tiles = grid.n_groups * heads.batched
    it = 0
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        if SEQUENCES:
            work = read_sequence_tile(queue, i_tile, grid, DKDV)
            release_work_tile(queue, i_tile)
            windows = work.windows
            lo, hi = windows.merged_lo, windows.merged_hi
            first_head = work.head * heads_per_tile
            layout_head = first_head // heads.per_list
            entry = windows.load_entry(lists.entries, lo, PAIRED)
            i_batch, kept_head, token = work.i_batch, work.head, work.kept_token
            streamed_token = work.streamed_token
        else:
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
            streamed_token = grid.streamed_token
        for w in gl.static_range(2):
            slot = (i_tile % SLOTS) * 2 + w
            full = kept.full.index(slot)
            mbarrier.wait(kept.empty.index(slot), ((i_tile // SLOTS) & 1) ^ 1)
            # both arrivals of `full`: one per tile, with its bytes
            kept_token = token + w * 64
            load_tokens(
                inputs.kept_qk, kept_qk.main, full, slot, i_batch, kept_head, kept_token, 64, D_MAIN, D, kept_qk.tails
            )  # fmt: skip
            load_tokens(
                inputs.kept_gv, kept_gv.main, full, slot, i_batch, kept_head, kept_token, 64, DV_MAIN, DV, kept_gv.tails
            )  # fmt: skip
        if DKDV:
            stats = stats_of_head(Stats, work, 0, heads_per_tile, grid, config)
            lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED, SEQUENCES)
        for g in range(heads_per_tile):
            q_head = first_head + g
            streamed_head = q_head
            if DKDV:
                stats = stats_of_head(Stats, work, g, heads_per_tile, grid, config)
                # within a layout head, the end of a list has led back to its start
                if q_head // heads.per_list != layout_head:
                    layout_head = q_head // heads.per_list
                    if SEQUENCES:
                        windows = windows_of_head(work, layout_head, lists, grid, config.IS_CAUSAL)
                        lo, hi = windows.merged_lo, windows.merged_hi
                        entry = windows.load_entry(lists.entries, lo, PAIRED)
                    else:
                        offsets = lists.offsets + layout_head * grid.n_lists + first
                        lo, hi = gl.load(offsets), gl.load(offsets + n_of_group)
                        entry = gl.load(lists.entries + lo, mask=lo < hi, other=0)
                    lse, delta = load_stats(stats, entry, 0, TILE, SUB, PAIRED, SEQUENCES)
            else:
                streamed_head = q_head // heads.per_kv
            n_steps = (hi - lo) * SUB
            for i in range(n_steps):
                is_last = i == n_steps - 1
                e_next = gl.where(is_last, lo, lo + (i + 1) // SUB)
                if SEQUENCES:
                    entry_next = windows.load_entry(lists.entries, e_next, PAIRED)
                else:
                    entry_next = gl.load(lists.entries + e_next)
                if entry >= 0:
                    one_only = False
                    index = entry
                    if PAIRED:
                        one_only = (entry & 1) == 0
                        index = entry >> 1
                    streamed = streamed_token + index * BLOCK_SIZE + (i % SUB) * TILE
                    stage = it % STAGES
                    qk_bar, gv_bar = streams.qk.full_barrier(it), streams.gv.full_barrier(it)
                    mbarrier.wait(streams.qk.empty.index(stage), ((it // STAGES) & 1) ^ 1)
                    mbarrier.arrive(streams.qk.empty.index(stage), count=1, pred=one_only)
                    load_tokens(
                        inputs.qk, qk_boxes.main, qk_bar, stage, i_batch, streamed_head, streamed, TILE, D_MAIN, D, qk_boxes.tails
                    )  # fmt: skip
                    load_tokens(
                        inputs.gv, gv_boxes.main, gv_bar, stage, i_batch, streamed_head, streamed, TILE, DV_MAIN, DV, gv_boxes.tails
                    )  # fmt: skip
                    if DKDV:
                        streams.lse.index(stage).store(lse)
                        streams.delta.index(stage).store(delta)
                        mbarrier.arrive(qk_bar, count=1)
                    it += 1
                elif SEQUENCES and PAIRED:
                    pass_place(streams, it, DKDV)
                    it += 1
                entry = entry_next
                if DKDV:
                    # of the next step, or of the next head's first: they arrive while its stage is waited for
                    if is_last & (g + 1 < heads_per_tile):
                        stats = stats_of_head(Stats, work, g + 1, heads_per_tile, grid, config)
                    lse, delta = load_stats(stats, entry, (i + 1) % SUB, TILE, SUB, PAIRED, SEQUENCES)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
