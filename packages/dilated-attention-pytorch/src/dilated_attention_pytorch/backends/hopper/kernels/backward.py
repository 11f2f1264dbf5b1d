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

from ..gluon_names import DELTA_FIRST, aggregate
from .backward_loads import producer, stats_of_head
from .backward_masks import (
    BlockMask,
    PairMasks,
    TileMask,
    keep_counted,
    keep_queries,
    keep_streamed,
    keep_streamed_keys,
    ready_words,
)
from .backward_step import (
    TAIL_LAYOUT,
    GradSums,
    StepConfig,
    finish_step,
    no_sums,
    operands_in_memory,
    operands_in_registers,
    shared_memory,
    step,
)
from .backward_terms import StepTerms, TileDropout
from .backward_tiles import (
    SEQUENCE_NUMBERS,
    SequenceGrid,
    find_sequence_lists,
    read_sequence_tile,
    windows_of_head,
)
from .dropout import kept_share, load_dropout
from .layouts import product_layout
from .lse_delta import CHUNK, QueryStats, Saved, load_saved, stats_of_queries
from .pipeline import PHASES
from .score_terms import in_log2, score_scale
from .sequences import Layout, Sequences, total_groups
from .softmax import LOG2E
from .store_rows import KeptRows, TokenRows, store_kept
from .tile_masks import words_of_columns, words_of_mask
from .tile_scheduler import (
    NUMBERS_PER_TILE,
    Heads,
    block_lists,
    read_work_tile,
    release_work_tile,
    scheduler_warp,
    wait_work_tile,
    work_tile_coords,
)
from .tma import boxes_of, release_stored, release_stored_before, store_tokens


@aggregate
class Inputs:
    """Tensor descriptors of what is loaded."""

    kept_qk: tma.tensor_descriptor
    kept_gv: tma.tensor_descriptor
    qk: tma.tensor_descriptor
    gv: tma.tensor_descriptor


@aggregate
class Outputs:
    """Tensor descriptors of dq (twice), or of dk and dv; the same as rows, which a call with sequences stores in part."""

    qk: tma.tensor_descriptor
    v: tma.tensor_descriptor
    qk_rows: TokenRows
    v_rows: TokenRows


@aggregate
class ScoreInputs:
    """What the scores of a call are made of; None for what it has not.

    bias: of (sequences, heads, blocks), and for the entries of the lists their blocks; slots: sums of the gradients of the
    scores of parts of blocks, (sequences, slot_heads, blocks, parts).
    """

    softmax_scale: gl.tensor
    softcap: gl.tensor | gl.constexpr
    slopes: gl.tensor | gl.constexpr
    blocks: gl.tensor | gl.constexpr
    bias: gl.tensor | gl.constexpr
    stride_bb: gl.tensor | gl.constexpr
    stride_bh: gl.tensor | gl.constexpr
    stride_be: gl.tensor | gl.constexpr
    slots: gl.tensor | gl.constexpr
    stride_ss: gl.tensor | gl.constexpr
    stride_sh: gl.tensor | gl.constexpr
    stride_se: gl.tensor | gl.constexpr
    slot_heads: gl.tensor | gl.constexpr
    seed: gl.tensor | gl.constexpr
    threshold: gl.tensor | gl.constexpr
    masks: PairMasks


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
    """Constants of the kernel. D, DV: columns of tiles `qk` and `gv`, with their tails."""

    D: gl.constexpr
    DV: gl.constexpr
    TILE: gl.constexpr
    BLOCK_SIZE: gl.constexpr
    STAGES: gl.constexpr
    SLOTS: gl.constexpr
    OPERANDS_IN_REGISTERS: gl.constexpr
    LATE_LSE: gl.constexpr
    OVERLAP_STEPS: gl.constexpr
    ONE_AT_A_TIME: gl.constexpr
    DKDV: gl.constexpr
    SUMS: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr
    SEQUENCES: gl.constexpr


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
    W: gl.constexpr, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, inputs, config
):
    """Warpgroup W: tokens W * 64 to W * 64 + 63 of every tile."""
    D: gl.constexpr = config.D
    DV: gl.constexpr = config.DV
    D_MAIN: gl.constexpr = kept.qk.shape[2]
    DV_MAIN: gl.constexpr = kept.gv.shape[2]
    TILE: gl.constexpr = config.TILE
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    SLOTS: gl.constexpr = config.SLOTS
    DKDV: gl.constexpr = config.DKDV
    OVERLAP_STEPS: gl.constexpr = config.OVERLAP_STEPS
    TILES: gl.constexpr = (
        BLOCK_SIZE // TILE if OVERLAP_STEPS else 1
    )  # that are cleared before a product is in flight
    SEQUENCES: gl.constexpr = config.SEQUENCES
    HAS_MASKS: gl.constexpr = inputs.masks.ids is not None
    HAS_PADDING: gl.constexpr = inputs.masks.padding is not None
    # padded keys that are kept need no mask: their sums are dropped in the end
    PADDED_TILES: gl.constexpr = HAS_PADDING and not DKDV
    EARLY_WORDS: gl.constexpr = PADDED_TILES and BLOCK_SIZE == TILE  # of padding, loaded a step early
    # with softcap or alibi ptxas keeps more in registers in the branch of a `BlockMask`
    IS_FULL: gl.constexpr = inputs.softcap is not None or inputs.slopes is not None
    HAS_EDGE: gl.constexpr = config.IS_CAUSAL or not config.EVEN_KV
    HAS_WORDS: gl.constexpr = SEQUENCES or HAS_MASKS or PADDED_TILES or (IS_FULL and HAS_EDGE)
    HAS_BIAS: gl.constexpr = inputs.bias is not None
    dtype: gl.constexpr = kept.qk.dtype
    PAIRED: gl.constexpr = BLOCK_SIZE == 64
    LISTS: gl.constexpr = 2 if PAIRED else 1
    SUB: gl.constexpr = BLOCK_SIZE // TILE
    s_layout: gl.constexpr = product_layout(TILE)
    sum_layout: gl.constexpr = product_layout(D_MAIN)
    v_layout: gl.constexpr = product_layout(DV_MAIN)
    step_config = StepConfig(
        DKDV, config.SUMS, config.LATE_LSE, config.ONE_AT_A_TIME, DELTA_FIRST, s_layout, sum_layout, v_layout
    )
    qk_boxes = boxes_of(outputs.qk, kept.qk, kept.qk_tails)
    v_boxes = boxes_of(outputs.v, kept.gv, kept.gv_tails)
    scale = score_scale(inputs.softmax_scale, inputs.softcap)
    share, scale_qk = None, inputs.softmax_scale
    if inputs.seed is not None:
        share = kept_share(inputs.threshold)
        scale_qk = inputs.softmax_scale / share
    heads_per_tile = 1
    if DKDV:
        heads_per_tile = heads.per_kv
    if SEQUENCES:
        n_tiles = grid.n_tiles
    else:
        n_tiles = grid.n_groups * heads.batched
    it = 0
    last = -1
    i_tile = 0
    tile = wait_work_tile(queue, i_tile)
    while tile < n_tiles:
        if SEQUENCES:
            work = read_sequence_tile(queue, i_tile, grid, DKDV)
            release_work_tile(queue, i_tile)
            lo, hi = work.windows.lo, work.windows.hi
            if PAIRED and W == 1:
                lo, hi = work.windows.lo_2, work.windows.hi_2
            i_sequence, i_batch, kept_head = work.i_sequence, work.i_batch, work.head
            kept_position = work.kept_position + W * 64
            token = work.kept_token + W * 64
            first_streamed = grid.layout.first_row * BLOCK_SIZE if DKDV else 0
            streamed_begin, streamed_end = work.streamed_begin, work.streamed_end
            kept_begin, kept_end = work.kept_begin - kept_position, work.kept_end - kept_position
            first_place = work.windows.first_place
        else:
            work = read_work_tile(queue, i_tile)
            release_work_tile(queue, i_tile)
            lo, hi = work.lo, work.middle
            if PAIRED and W == 1:
                lo, hi = work.middle, work.hi
            i_batch, kept_head = work.batch_head // heads.num, work.batch_head % heads.num
            i_sequence = i_batch
            kept_position = grid.kept_position + work.group * 128 + W * 64
            token = grid.kept_token + work.group * 128 + W * 64
            first_streamed = grid.streamed_position
            streamed_end = grid.kv_len
        first_head = kept_head * heads_per_tile
        layout_head = first_head // heads.per_list
        # requested before the kept tiles are waited for
        index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
        if PAIRED:
            behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
            if SEQUENCES:
                behind -= first_place
                n_places = work.windows.n_places()
            else:
                n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
        if HAS_MASKS:
            mask_id = gl.load(inputs.masks.ids + lo, mask=lo < hi, other=-1)
        if HAS_PADDING:
            padding = inputs.masks.padding + i_sequence.to(gl.int64) * inputs.masks.stride_p
        stats = QueryStats(0.0, 0.0)
        sums = no_sums(kept, step_config)
        if not DKDV:
            if SEQUENCES:
                batch_head = i_batch * heads.num + kept_head
                first_query, end_query = token + kept_begin, token + kept_end
            else:
                batch_head = work.batch_head
                first_query, end_query = 0, saved.q_len
            saved_rows = load_saved(saved, i_batch, kept_head, batch_head, token, first_query, end_query, DV)
        slot = (i_tile % SLOTS) * 2 + W
        mbarrier.wait(kept.full.index(slot), (i_tile // SLOTS) & 1)
        if not DKDV:
            if SEQUENCES:
                chunk_stats = stats_of_head(Stats, work, 0, 1, grid, config) + W * (2 * CHUNK)
                n_rest = CHUNK
            else:
                chunk = work.group * 2 + W
                n_chunks = grid.n_rows * (BLOCK_SIZE // CHUNK)  # those past the last row are in no head
                chunk_stats = Stats + (work.batch_head.to(gl.int64) * n_chunks + chunk) * (2 * CHUNK)
                n_rest = (n_chunks - chunk) * CHUNK
            stats = stats_of_queries(
                saved_rows, kept.gv, kept.gv_tails, slot, chunk_stats, n_rest, share, s_layout
            )
            if SEQUENCES and inputs.slots is not None:  # all rows are in the sums of a block
                keep_queries(kept, slot, kept_begin, kept_end)
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
                    if SEQUENCES:
                        windows = windows_of_head(work, layout_head, lists, grid, config.IS_CAUSAL)
                        lo, hi = windows.lo, windows.hi
                        if PAIRED and W == 1:
                            lo, hi = windows.lo_2, windows.hi_2
                        first_place = windows.first_place
                    else:
                        first = work.group * LISTS
                        n_of_group = gl.minimum(LISTS, grid.n_lists - first)
                        offsets = lists.offsets + layout_head * grid.n_lists + first
                        lo = gl.load(offsets + gl.minimum(W if PAIRED else 0, n_of_group))
                        hi = gl.load(offsets + gl.minimum(W + 1 if PAIRED else 1, n_of_group))
                    index = gl.load(lists.indices + lo, mask=lo < hi, other=0)
                    if PAIRED:
                        behind = gl.load(lists.places + lo, mask=lo < hi, other=0)
                        if SEQUENCES:
                            behind -= first_place
                            n_places = windows.n_places()
                        else:
                            n_places = gl.load(lists.unions + layout_head * grid.n_groups + work.group)
                    if HAS_MASKS:
                        mask_id = gl.load(inputs.masks.ids + lo, mask=lo < hi, other=-1)
            else:
                q_head = kept_head
            slope = None
            if inputs.slopes is not None:
                slope = gl.load(inputs.slopes + q_head) * LOG2E
            dropout = None
            if inputs.seed is not None:
                sequence_head = i_sequence * heads.num * heads_per_tile + q_head
                dropout = load_dropout(inputs.seed, inputs.threshold, sequence_head)
            if HAS_BIAS:
                bias_of_head = inputs.bias + i_sequence.to(gl.int64) * inputs.stride_bb
                bias_of_head += q_head.to(gl.int64) * inputs.stride_bh
                block = gl.load(inputs.blocks + lo, mask=lo < hi, other=0)
                block_next = gl.load(inputs.blocks + lo + 1, mask=lo + 1 < hi, other=0)
                bias_ptr = bias_of_head + block.to(gl.int64) * inputs.stride_be
                bias = in_log2(gl.load(bias_ptr, mask=lo < hi, other=0.0))
            if EARLY_WORDS:
                index_next = gl.load(lists.indices + lo + 1, mask=lo + 1 < hi, other=0)
                words = words_of_columns(padding + index * (BLOCK_SIZE // 32), TILE // 32)
            if inputs.slots is not None:
                slots_of_head = inputs.slots + i_sequence.to(gl.int64) * inputs.stride_ss
                slots_of_head += (q_head % inputs.slot_heads).to(gl.int64) * inputs.stride_sh
            place = it
            if PAIRED:
                place += behind * SUB
            for e in range(lo, hi):
                if PAIRED:
                    streams.qk.wait_past(last, place)
                slot_of_block = None
                if inputs.slots is not None:
                    slot_of_block = slots_of_head + block.to(gl.int64) * inputs.stride_se
                    if not PAIRED:
                        slot_of_block += W * 4
                for sub in gl.static_range(SUB):
                    if not config.OPERANDS_IN_REGISTERS:
                        operands = operands_in_memory(kept, slot)
                    streamed_position = first_streamed + index * BLOCK_SIZE + sub * TILE
                    if PADDED_TILES:
                        if not EARLY_WORDS:
                            words = words_of_columns(
                                padding + index * (BLOCK_SIZE // 32) + sub * (TILE // 32), TILE // 32
                            )
                        keep_streamed_keys(streams, place + sub, words)
                    elif SEQUENCES and sub % TILES == 0:
                        begin, end = streamed_begin - streamed_position, streamed_end - streamed_position
                        keep_streamed(streams, place + sub, begin, end, TILES)
                    if HAS_WORDS:
                        tile_mask = TileMask(
                            kept_position, streamed_position, streamed_end,
                            mask_id if HAS_MASKS else None,
                            words_of_mask(
                                inputs.masks.table, mask_id, 0 if PAIRED else W * 64, sub * (TILE // 32), BLOCK_SIZE, TILE // 32
                            ) if HAS_MASKS else None,
                            words if PADDED_TILES else None,
                            DKDV, config.IS_CAUSAL,
                        )  # fmt: skip
                        mask = ready_words(tile_mask, TILE)
                    else:
                        mask = BlockMask(
                            kept_position, streamed_position, grid.kv_len, DKDV, config.IS_CAUSAL, config.EVEN_KV
                        )  # fmt: skip
                    terms = StepTerms(
                        scale, slope, kept_position - streamed_position, bias if HAS_BIAS else None,
                        slot_of_block + sub * (BLOCK_SIZE // 16) if inputs.slots is not None else None,
                        TileDropout(dropout, kept_position, streamed_position, share)  # type: ignore[arg-type]
                        if inputs.seed is not None else None,
                    )  # fmt: skip
                    sums = step(
                        sums, operands, streams, stats, place + sub, mask, terms, step_config,
                        sub == 0 or not OVERLAP_STEPS, sub < SUB - 1 and not OVERLAP_STEPS,
                    )  # fmt: skip
                # of the next entry, requested while products run: ptxas waits for a number where it is loaded
                e_next = gl.where(e + 1 < hi, e + 1, lo)
                e_after = gl.where(e + 2 < hi, e + 2, lo)
                if EARLY_WORDS:
                    words_next = words_of_columns(padding + index_next * (BLOCK_SIZE // 32), TILE // 32)
                    index_after = gl.load(lists.indices + e_after)
                else:
                    index_next = gl.load(lists.indices + e_next)
                place_next = place + SUB
                if PAIRED:
                    behind = gl.load(lists.places + e_next)
                    if SEQUENCES:
                        behind -= first_place
                    place_next = it + behind * SUB
                if HAS_MASKS:
                    mask_id_next = gl.load(inputs.masks.ids + e_next)
                if HAS_BIAS:
                    bias_next = gl.load(bias_of_head + block_next.to(gl.int64) * inputs.stride_be)
                    block_after = gl.load(inputs.blocks + e_after)
                last = place + SUB - 1
                sums = finish_step(sums, streams, last, step_config)
                index, place = index_next, place_next
                if HAS_MASKS:
                    mask_id = mask_id_next
                if HAS_BIAS:
                    block, block_next, bias = block_next, block_after, in_log2(bias_next)
                if EARLY_WORDS:
                    index_next, words = index_after, words_next
            if not PAIRED:
                n_places = hi - lo
            it += n_places * SUB
            if PAIRED:
                # the other warpgroup's list may be longer, or later heads may have entries only for it
                last = streams.qk.wait_past(last, it - 1)

        if HAS_PADDING and DKDV:
            words_of_kept = padding + kept_position // 32
            sum_qk, sum_v, qk_tail, v_tail = sums.qk, sums.v, sums.qk_tail, sums.v_tail
            if config.SUMS != "v":
                sum_qk = keep_counted(sum_qk, words_of_kept, sum_layout)
            if config.SUMS != "qk":
                sum_v = keep_counted(sum_v, words_of_kept, v_layout)
            if qk_tail is not None:
                qk_tail = keep_counted(qk_tail, words_of_kept, TAIL_LAYOUT)
            if v_tail is not None:
                v_tail = keep_counted(v_tail, words_of_kept, TAIL_LAYOUT)
            sums = GradSums(sum_qk, sum_v, qk_tail, v_tail)
        # the kept tiles are no longer needed: their memory holds the sums until they are stored
        if config.SUMS != "v":
            kept.qk.index(slot).store((sums.qk * scale_qk).to(dtype))
        if config.SUMS != "qk":
            sum_v = sums.v
            if inputs.seed is not None:
                sum_v = sum_v / share
            kept.gv.index(slot).store(sum_v.to(dtype))
        if sums.qk_tail is not None:
            kept.qk_tails.index(slot).store((sums.qk_tail * scale_qk).to(dtype))
        if sums.v_tail is not None:
            v_tail = sums.v_tail
            if inputs.seed is not None:
                v_tail = v_tail / share
            kept.gv_tails.index(slot).store(v_tail.to(dtype))
        fence_async_shared()
        if SEQUENCES:
            rows = KeptRows(i_batch, kept_head, token, kept_begin, kept_end)
            if config.SUMS != "v":
                store_kept(outputs.qk, qk_boxes, outputs.qk_rows, kept.qk, kept.qk_tails, slot, rows)
            if config.SUMS != "qk":
                store_kept(outputs.v, v_boxes, outputs.v_rows, kept.gv, kept.gv_tails, slot, rows)
        else:
            if config.SUMS != "v":
                store_tokens(
                    outputs.qk, qk_boxes.main, slot, i_batch, kept_head, token, D_MAIN, D, qk_boxes.tails
                )
            if config.SUMS != "qk":
                store_tokens(
                    outputs.v, v_boxes.main, slot, i_batch, kept_head, token, DV_MAIN, DV, v_boxes.tails
                )
        release_stored(kept.empty, W, SLOTS)
        i_tile += 1
        tile = wait_work_tile(queue, i_tile)
    tma.store_wait(0)


NUMBERS = (
    "stride_lb", "stride_lh", "stride_ls", "has_grad_lse", "threshold", "n_layout_groups", "n_entries", "n_groups", "n_lists", "n_rows",
    "num_heads", "n_batch_heads", "heads_per_kv", "heads_per_list", "first_row", "q_offset", "q_len", "kv_len", "v_dim",
    "n_sequences", "n_layout_rows", "n_layout_cols", "list_heads", "stride_bb", "stride_bh", "stride_be", "stride_pb",
    "stride_ss", "stride_sh", "stride_se", "slot_heads", "stride_gb", "stride_gs", "stride_gh", "stride_vb", "stride_vs",
    "stride_vh",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    desc_kept_qk, desc_kept_gv, desc_qk, desc_gv, desc_grad_qk, desc_grad_v, Stats, Out, Lse, GradLse, Offsets, Indices,
    WorkOrder, Counter, Table, Starts, MaskIds, MaskTable, Padding, BlockIds, Bias, Slots, Slopes, Seed, GradQk, GradV, stride_ob,
    stride_os, stride_oh, stride_lb, stride_lh, stride_ls, has_grad_lse, n_layout_groups, n_entries, n_groups, n_lists, n_rows,
    num_heads, n_batch_heads, heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, v_dim, n_sequences,
    n_layout_rows, n_layout_cols, list_heads, softcap, threshold, stride_bb, stride_bh, stride_be, stride_pb, stride_ss, stride_sh,
    stride_se, slot_heads, stride_gb, stride_gs, stride_gh, stride_vb, stride_vs, stride_vh, softmax_scale,
    D: gl.constexpr, DV: gl.constexpr, TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    OPERANDS_IN_REGISTERS: gl.constexpr, LATE_LSE: gl.constexpr, OVERLAP_STEPS: gl.constexpr, ONE_AT_A_TIME: gl.constexpr,
    DKDV: gl.constexpr, SUMS: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, SEQUENCES: gl.constexpr, PACKED: gl.constexpr,
    HEAD_DIM: gl.constexpr, V_HEAD_DIM: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file; Out, Lse and GradLse are for the dq pass only. From Table to GradV, and from n_sequences to
    stride_vh, what a call has not is None: see `Sequences`, `Layout`, `ScoreInputs`, `PairMasks` and `TokenRows`.

    Launched with 4 warps: the first warpgroup is the default partition.
    """
    FULLS: gl.constexpr = PHASES * STAGES if BLOCK_SIZE == 64 else STAGES
    NUMBERS: gl.constexpr = SEQUENCE_NUMBERS if SEQUENCES else NUMBERS_PER_TILE
    kept, streams, queue = shared_memory(desc_kept_qk.dtype, D, DV, TILE, STAGES, SLOTS, FULLS, DKDV, NUMBERS)
    lists = block_lists(Offsets, Indices, WorkOrder, n_layout_groups, n_entries, BLOCK_SIZE)
    # the queries of the first row need not be at position 0
    first_query = first_row * BLOCK_SIZE - q_offset
    if SEQUENCES:
        sequences = Sequences(Table, Starts, n_sequences, q_len, kv_len, q_offset, PACKED)
        layout = Layout(n_layout_rows, n_layout_cols, first_row, list_heads, BLOCK_SIZE)
        n_tiles = total_groups(sequences, layout, DKDV) * num_heads
        grid = SequenceGrid(sequences, layout, n_tiles, total_groups(sequences, layout, False) * 2)
    else:
        if DKDV:
            grid = Grid(  # type: ignore[assignment]
                n_groups, n_lists, n_rows, 0, 0, first_query, first_row * BLOCK_SIZE, kv_len
            )  # fmt: skip
        else:
            grid = Grid(  # type: ignore[assignment]
                n_groups, n_lists, n_rows, first_query, first_row * BLOCK_SIZE, 0, 0, kv_len
            )  # fmt: skip
        n_tiles = n_groups * n_batch_heads
    saved = Saved(
        Out, stride_ob, stride_os, stride_oh, Lse, GradLse, stride_lb, stride_lh, stride_ls, has_grad_lse, q_len, v_dim
    )  # fmt: skip
    heads = Heads(num_heads, n_batch_heads, heads_per_kv, heads_per_list)
    inputs = Inputs(desc_kept_qk, desc_kept_gv, desc_qk, desc_gv)
    outputs = Outputs(
        desc_grad_qk, desc_grad_v, TokenRows(GradQk, stride_gb, stride_gs, stride_gh, HEAD_DIM),
        TokenRows(GradV, stride_vb, stride_vs, stride_vh, V_HEAD_DIM),
    )  # fmt: skip
    of_scores = ScoreInputs(
        softmax_scale, softcap, Slopes, BlockIds, Bias, stride_bb, stride_bh, stride_be, Slots, stride_ss, stride_sh,
        stride_se, slot_heads, Seed, threshold, PairMasks(MaskIds, MaskTable, Padding, stride_pb),
    )  # fmt: skip
    config = Config(
        D, DV, TILE, BLOCK_SIZE, STAGES, SLOTS, OPERANDS_IN_REGISTERS, LATE_LSE, OVERLAP_STEPS, ONE_AT_A_TIME, DKDV, SUMS,
        IS_CAUSAL, EVEN_KV, SEQUENCES,
    )  # fmt: skip
    W0: gl.constexpr = 0
    W1: gl.constexpr = 1
    FIND: gl.constexpr = find_sequence_lists if SEQUENCES else find_lists
    gl.warp_specialize(
        [
            (consumer, (W0, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, of_scores, config)),
            (consumer, (W1, outputs, kept, streams, queue, lists, Stats, saved, heads, grid, of_scores, config)),
            (producer, (inputs, kept, streams, queue, lists, Stats, heads, grid, config)),
            (scheduler_warp, (queue, Counter, n_tiles, FIND, lists, heads, grid, config, SEQUENCES)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
