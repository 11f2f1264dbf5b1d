"""What the passes of the backward share: one step, and the shared memory; see backward.py for the words."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_accumulator,
    warpgroup_mma_wait,
)

from ..gluon_names import aggregate
from .attend import scores
from .backward_terms import store_sums_of_warps
from .dropout import kept_part, marked
from .layouts import FLAT_LAYOUT, TILE_LAYOUT, product_layout
from .lse_delta import CHUNK
from .packed_halves import packed, packed_product
from .pipeline import Ring, barriers, init_barriers
from .tile_scheduler import NUMBERS_PER_TILE, allocate_queue
from .tma import kept_tile

BLOCK = gl.constexpr(128)  # tokens of a block, with token dilation


@aggregate
class KeptTiles:
    """Shared memory for the tiles that a warpgroup keeps, with their tails (tma.py), and the barriers of its slots."""

    qk: gl.shared_memory_descriptor
    gv: gl.shared_memory_descriptor
    qk_tails: gl.shared_memory_descriptor | gl.constexpr
    gv_tails: gl.shared_memory_descriptor | gl.constexpr
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@aggregate
class Streams:
    """Rings of the tiles that stream by, with one `empty` barrier for both; in the dkdv pass also lse and -delta of their queries."""

    qk: Ring
    gv: Ring
    lse: gl.shared_memory_descriptor
    delta: gl.shared_memory_descriptor


@aggregate
class Operands:
    """The kept tiles as operands of products, in registers or in shared memory, and their tails or None."""

    qk: gl.tensor | gl.shared_memory_descriptor
    gv: gl.tensor | gl.shared_memory_descriptor
    qk_tail: gl.shared_memory_descriptor | gl.constexpr
    gv_tail: gl.shared_memory_descriptor | gl.constexpr


@aggregate
class GradSums:
    """Sums of dk and dv, which products in flight may still add to; one that a pass does not compute is the number 0.

    qk_tail, v_tail: those of the tails, or None.
    """

    qk: gl.tensor | warpgroup_mma_accumulator
    v: gl.tensor | warpgroup_mma_accumulator
    qk_tail: gl.tensor | warpgroup_mma_accumulator | gl.constexpr
    v_tail: gl.tensor | warpgroup_mma_accumulator | gl.constexpr


@aggregate
class StepConfig:
    """Constants of a step.

    DKDV: of the dkdv pass; SUMS: which are computed, "both", "qk" or "v"; LATE_LSE: lse is read behind the products, not
    before them; ONE_AT_A_TIME: see `ds_one_at_a_time`; DELTA_FIRST: -delta initialises the product with v in the dkdv pass,
    except with dropout. s_layout, sum_layout, v_layout: of scores and sums.
    """

    DKDV: gl.constexpr
    SUMS: gl.constexpr
    LATE_LSE: gl.constexpr
    ONE_AT_A_TIME: gl.constexpr
    DELTA_FIRST: gl.constexpr
    s_layout: gl.constexpr
    sum_layout: gl.constexpr
    v_layout: gl.constexpr


TAIL_LAYOUT = gl.constexpr(product_layout(64))  # of sums of tails


@gluon.jit
def no_sums(kept, config):
    """The sums before the first step; one that is not asked for is the number 0."""
    D: gl.constexpr = kept.qk.shape[2]
    DV: gl.constexpr = kept.gv.shape[2]
    sum_qk, sum_v = gl.to_tensor(0), gl.to_tensor(0)
    qk_tail, v_tail = None, None
    if config.SUMS != "v":
        sum_qk = gl.zeros([64, D], gl.float32, layout=config.sum_layout)
        if kept.qk_tails is not None:
            qk_tail = gl.zeros([64, 64], gl.float32, layout=TAIL_LAYOUT)
    if config.SUMS != "qk":
        sum_v = gl.zeros([64, DV], gl.float32, layout=config.v_layout)
        if kept.gv_tails is not None:
            v_tail = gl.zeros([64, 64], gl.float32, layout=TAIL_LAYOUT)
    return GradSums(sum_qk, sum_v, qk_tail, v_tail)


@gluon.jit
def load_stats(
    stats, entry, sub, TILE: gl.constexpr, SUB: gl.constexpr, PAIRED: gl.constexpr, LISTED_ONLY: gl.constexpr = False
):  # fmt: skip
    """lse and -delta of the queries of a step of one head; of any queries where the entry is negative.

    LISTED_ONLY: there may be no other queries; then anything where the entry is negative.
    """
    lanes: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    row = gl.maximum(entry, 0)
    if PAIRED:
        row = row >> 1
    m = gl.arange(0, TILE, layout=lanes)
    if TILE >= CHUNK:
        ptrs = stats + (row * SUB + sub) * (2 * TILE) + (m // CHUNK) * (2 * CHUNK) + m % CHUNK
    else:
        m += (row * SUB + sub) * TILE
        ptrs = stats + (m // CHUNK) * (2 * CHUNK) + m % CHUNK
    if LISTED_ONLY:
        is_listed = (m >= 0) & (entry >= 0)
        return gl.load(ptrs, mask=is_listed, other=0.0), gl.load(ptrs + CHUNK, mask=is_listed, other=0.0)
    else:
        return gl.load(ptrs), gl.load(ptrs + CHUNK)


@gluon.jit
def in_every_row(x, TILE: gl.constexpr, layout: gl.constexpr):
    """(64, TILE) registers with x, (TILE,), in every row; made here, so that a product may start from them while another runs.

    Copied between the two products they would make ptxas wait for the first (C7517).
    """
    x, _ = gl.broadcast(x[None, :], gl.zeros([64, TILE], gl.float32, layout=layout))
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def operands_in_registers(kept, slot, s_layout: gl.constexpr):
    """The kept tiles of a slot, without tails, loaded."""
    operand: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    return Operands(kept.qk.index(slot).load(operand), kept.gv.index(slot).load(operand), None, None)


@gluon.jit
def operands_in_memory(kept, slot):
    """The kept tiles of a slot, in shared memory; ask again in every step."""
    qk_tail, gv_tail = None, None
    if kept.qk_tails is not None:
        qk_tail = kept_tile(kept.qk_tails, slot)
    if kept.gv_tails is not None:
        gv_tail = kept_tile(kept.gv_tails, slot)
    return Operands(kept_tile(kept.qk, slot), kept_tile(kept.gv, slot), qk_tail, gv_tail)


@gluon.jit
def add_tail(s, kept_tail, ring, place):
    """Scores to which the products of the tails are added, asynchronously, if there are any."""
    if kept_tail is not None:
        s = warpgroup_mma(kept_tail, ring.tail(place).permute([1, 0]), s, is_async=True)
    return s


@gluon.jit
def add_to_tail(sum_tail, x, ring, place):
    """Start adding the product of x and the tail of a streamed tile."""
    operand: gl.constexpr = gl.DotOperandLayout(0, TAIL_LAYOUT, 2)
    return warpgroup_mma(gl.convert_layout(x, operand), ring.tail(place), sum_tail, is_async=True)


@gluon.jit
def add_to_v(sums, half_p, gv_tile, streams, place, config):
    """Start adding the product of p, in 16 bits, and the streamed tile `gv` to the sums."""
    operand: gl.constexpr = gl.DotOperandLayout(0, config.v_layout, 2)
    sum_v, v_tail = (
        warpgroup_mma(gl.convert_layout(half_p, operand), gv_tile, sums.v, is_async=True),
        sums.v_tail,
    )
    if v_tail is not None:
        v_tail = add_to_tail(v_tail, half_p, streams.gv, place)
    return GradSums(sums.qk, sum_v, sums.qk_tail, v_tail)


@gluon.jit
def add_to_qk(sums, half_ds, qk_tile, streams, place, config):
    """Start adding the product of ds, in 16 bits, and the streamed tile `qk` to the sums."""
    operand: gl.constexpr = gl.DotOperandLayout(0, config.sum_layout, 2)
    sum_qk = warpgroup_mma(gl.convert_layout(half_ds, operand), qk_tile, sums.qk, is_async=True)
    qk_tail = sums.qk_tail
    if qk_tail is not None:
        qk_tail = add_to_tail(qk_tail, half_ds, streams.qk, place)
    return GradSums(sum_qk, sums.v, qk_tail, sums.v_tail)


@gluon.jit
def ds_one_at_a_time(sums, operands, streams, place, mask, terms, config):
    """`ds_of_step` of the dkdv pass, without a softcap, with fewer registers: scores and dp share theirs, and p is kept in 16 bits."""
    s_layout: gl.constexpr = config.s_layout
    GV_PRODUCTS: gl.constexpr = 1 if operands.gv_tail is None else 2
    dtype: gl.constexpr = operands.qk.dtype
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    stage = place % streams.qk.tiles.shape[0]
    qk_tile = streams.qk.consumer_wait(place)
    gv_tile = streams.gv.consumer_wait(place)  # behind the scores the exponentials would move past this wait
    lse = streams.lse.index(stage).load(gl.SliceLayout(0, s_layout))
    s = add_tail(scores(operands.qk, qk_tile, TILE, s_layout), operands.qk_tail, streams.qk, place)
    s = warpgroup_mma_wait(0, deps=[s])
    if terms.bias is not None:
        lse -= terms.bias
    p = mask.apply_mask(gl.exp2(terms.less(s, lse, s_layout, True)), s_layout)
    half_p = packed(p, dtype)
    delta = in_every_row(streams.delta.index(stage).load(gl.SliceLayout(0, s_layout)), TILE, s_layout)
    dp = warpgroup_mma(operands.gv, gv_tile.permute([1, 0]), delta, is_async=True)
    dp = add_tail(dp, operands.gv_tail, streams.gv, place)
    sums = add_to_v(sums, half_p, gv_tile, streams, place, config)
    dp = warpgroup_mma_wait(GV_PRODUCTS, deps=[dp])
    return sums, packed_product(half_p, dp, dtype), qk_tile


@gluon.jit
def ds_of_step(sums, operands, streams, stats, place, mask, terms, config, FIRST: gl.constexpr):
    """The sums, to which p @ gv is being added; ds of the tile at a place of the streams in 16 bits, or the number 0 if no
    sum wants it; and the tile `qk`.
    """
    DKDV: gl.constexpr = config.DKDV
    SUM_QK: gl.constexpr = config.SUMS != "v"
    SUM_V: gl.constexpr = config.SUMS != "qk"
    s_layout: gl.constexpr = config.s_layout
    QK_PRODUCTS: gl.constexpr = 1 if operands.qk_tail is None else 2
    GV_PRODUCTS: gl.constexpr = 1 if operands.gv_tail is None else 2
    dtype: gl.constexpr = operands.qk.dtype
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    DROPOUT: gl.constexpr = terms.dropout is not None
    EARLY_DELTA: gl.constexpr = config.DELTA_FIRST and not DROPOUT
    lse, delta = stats.lse, stats.delta
    if DROPOUT:  # before the products, which take the registers
        drop = terms.dropout
        dropped = drop.of_head.dropped(drop.first_row, drop.first_column, TILE, DKDV)
    qk_tile = streams.qk.consumer_wait(place)
    if DKDV and not config.LATE_LSE:  # before the products: shared memory is read in program order
        lse = streams.lse.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
    if DKDV and SUM_QK and EARLY_DELTA:
        delta = in_every_row(
            streams.delta.index(place % STAGES).load(gl.SliceLayout(0, s_layout)), TILE, s_layout
        )
    s = add_tail(scores(operands.qk, qk_tile, TILE, s_layout), operands.qk_tail, streams.qk, place)
    if not FIRST:
        sums = wait_sums(sums, QK_PRODUCTS, config.SUMS)
        streams.qk.consumer_release(place - 1)  # gv too: they share a barrier
    gv_tile = streams.gv.consumer_wait(place)
    if SUM_QK:
        if DKDV and EARLY_DELTA:
            dp = warpgroup_mma(operands.gv, gv_tile.permute([1, 0]), delta, is_async=True)
        else:
            dp = scores(operands.gv, gv_tile, TILE, s_layout)
        dp = add_tail(dp, operands.gv_tail, streams.gv, place)
    if DKDV and config.LATE_LSE:
        lse = streams.lse.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
    s = warpgroup_mma_wait(GV_PRODUCTS if SUM_QK else 0, deps=[s])
    if terms.bias is not None:
        lse -= terms.bias
    s = terms.scale.capped(s)
    p = gl.exp2(terms.less(s, lse, s_layout, DKDV))
    p = mask.apply_mask(p, s_layout)
    if DROPOUT:
        p = marked(p, dropped, s_layout)
    if not DKDV and terms.slot is None:
        p = terms.of_products(p, s)
    ds = 0.0
    if DKDV:
        if SUM_QK and not EARLY_DELTA and not DROPOUT:
            delta = streams.delta.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
        if SUM_V:
            half_p = kept_part(p, dtype) if DROPOUT else p.to(dtype)
            sums = add_to_v(sums, half_p, gv_tile, streams, place, config)
        if SUM_QK:
            p = terms.of_products(p, s)
            dp = warpgroup_mma_wait(GV_PRODUCTS if SUM_V else 0, deps=[dp])
            if DROPOUT:  # later: what is dropped takes registers
                delta = streams.delta.index(place % STAGES).load(gl.SliceLayout(0, s_layout))
            if EARLY_DELTA:
                ds = p * dp
            else:
                ds = of_weights(p, dp, delta[None, :], DROPOUT)
    else:
        dp = warpgroup_mma_wait(0, deps=[dp])
        ds = of_weights(p, dp, delta[:, None], DROPOUT)
        if terms.slot is not None:
            factor = 1.0 / terms.dropout.kept_share if DROPOUT else 1.0
            store_sums_of_warps(ds, terms.slot, factor)
            ds = terms.of_products(ds, s)
    if SUM_QK:
        ds = ds.to(dtype)  # type: ignore[attr-defined]
    return sums, ds, qk_tile


@gluon.jit
def step(
    sums, operands, streams, stats, place, mask, terms, config, FIRST: gl.constexpr = True, LAST: gl.constexpr = True
):  # fmt: skip
    """Add the tile at a place of the streams.

    `mask.apply_mask(p, layout)` makes p 0 where a query may not see the key, `terms` says what the scores are.
    The sums of all but a LAST step are in flight on return, and waited for once the next one, not FIRST, has started, or by
    `finish_step`: ptxas serialises all products of a loop if one of them crosses its end.
    """
    if config.ONE_AT_A_TIME:
        sums, half_ds, qk_tile = ds_one_at_a_time(sums, operands, streams, place, mask, terms, config)
    else:
        sums, half_ds, qk_tile = ds_of_step(sums, operands, streams, stats, place, mask, terms, config, FIRST)
    if config.SUMS != "v":
        sums = add_to_qk(sums, half_ds, qk_tile, streams, place, config)
    if LAST:
        sums = finish_step(sums, streams, place, config)
    return sums


@gluon.jit
def finish_step(sums, streams, place, config):
    """Wait for the sums of the step at a place, and release it."""
    sums = wait_sums(sums, 0, config.SUMS)
    streams.qk.consumer_release(place)
    return sums


@gluon.jit
def of_weights(p, dp, minus_delta, DROPOUT: gl.constexpr):
    """The gradient of scores; with DROPOUT, where dropped weights are negative, less a factor: the inverse of the kept share."""
    if DROPOUT:
        return gl.maximum(p, 0.0) * dp + gl.abs(p) * minus_delta
    else:
        return p * (dp + minus_delta)


@gluon.jit
def wait_sums(sums, N: gl.constexpr, SUMS: gl.constexpr):
    """Wait until at most N products are in flight, none of them of the sums."""
    sum_qk, sum_v, qk_tail, v_tail = sums.qk, sums.v, sums.qk_tail, sums.v_tail
    if SUMS == "both":
        sum_qk, sum_v = warpgroup_mma_wait(N, deps=[sum_qk, sum_v])
    elif SUMS == "qk":
        sum_qk = warpgroup_mma_wait(N, deps=[sum_qk])
    else:
        sum_v = warpgroup_mma_wait(N, deps=[sum_v])
    if qk_tail is not None:
        qk_tail = warpgroup_mma_wait(N, deps=[qk_tail])
    if v_tail is not None:
        v_tail = warpgroup_mma_wait(N, deps=[v_tail])
    return GradSums(sum_qk, sum_v, qk_tail, v_tail)


@gluon.jit
def shared_memory(
    dtype: gl.constexpr, D: gl.constexpr, DV: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, SLOTS: gl.constexpr,
    FULLS: gl.constexpr, DKDV: gl.constexpr, NUMBERS: gl.constexpr = NUMBERS_PER_TILE,
):  # fmt: skip
    """Kept tiles, streams and work queue, ready to use; FULLS barriers tell when a stage is full (pipeline.py).

    D, DV: columns of the tiles `qk` and `gv`. NUMBERS: that are published of a work tile.
    """
    D_MAIN: gl.constexpr = 128 if D == 192 else D
    DV_MAIN: gl.constexpr = 128 if DV == 192 else DV
    STATS_STAGES: gl.constexpr = STAGES if DKDV else 1
    kept_qk = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, D_MAIN], TILE_LAYOUT)
    kept_gv = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, DV_MAIN], TILE_LAYOUT)
    qk = gl.allocate_shared_memory(dtype, [STAGES, TILE, D_MAIN], TILE_LAYOUT)
    gv = gl.allocate_shared_memory(dtype, [STAGES, TILE, DV_MAIN], TILE_LAYOUT)
    kept_qk_tails, kept_gv_tails, qk_tails, gv_tails = None, None, None, None
    if D == 192:
        kept_qk_tails = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, 64], TILE_LAYOUT)
        qk_tails = gl.allocate_shared_memory(dtype, [STAGES, TILE, 64], TILE_LAYOUT)
    if DV == 192:
        kept_gv_tails = gl.allocate_shared_memory(dtype, [SLOTS * 2, 64, 64], TILE_LAYOUT)
        gv_tails = gl.allocate_shared_memory(dtype, [STAGES, TILE, 64], TILE_LAYOUT)
    lse = gl.allocate_shared_memory(gl.float32, [STATS_STAGES, TILE], FLAT_LAYOUT)
    delta = gl.allocate_shared_memory(gl.float32, [STATS_STAGES, TILE], FLAT_LAYOUT)
    queue = allocate_queue(NUMBERS)
    kept_full = barriers(SLOTS * 2)
    kept_empty = barriers(SLOTS * 2)
    qk_full = barriers(FULLS)
    gv_full = barriers(FULLS)
    empty = barriers(STAGES)
    init_barriers(kept_full, 2, kept_empty, 1)  # full: qk, gv
    init_barriers(empty, 2)
    init_barriers(qk_full, 2 if DKDV else 1, gv_full, 1)  # qk; lse and delta
    fence_async_shared()
    kept = KeptTiles(kept_qk, kept_gv, kept_qk_tails, kept_gv_tails, kept_full, kept_empty)
    qk_ring, gv_ring = Ring(qk, qk_full, empty, qk_tails), Ring(gv, gv_full, empty, gv_tails)
    return kept, Streams(qk_ring, gv_ring, lse, delta), queue
