"""What one warpgroup of the forward kernel does with a list of keys: 64 queries, a ring of k and v tiles, online softmax.

Two orders of the same steps, because products run in the background and what runs beside them needs registers:
    ahead   the scores of the next tile run during the softmax of this one: two tiles of scores are held
    alone   nothing runs during it but the warpgroups of a second program on the multiprocessor, for which the registers
            are halved: best where the softmax takes as long as the products
(Shah et al., FlashAttention-3, arXiv:2407.08608, has the product of p and v of the tile before there: slower.)
A list is cut into tiles of BLOCK_N keys: a part of an entry, an entry, or the kept keys of several (token dilation).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from .pipeline import get_tile, give_back, pass_over, wait_past
from .softmax import INFINITY, first_of_row, later_softmax, scaled, softmax
from .tile_scheduler import count_below
from .tma import kept_tile

LOG2E = gl.constexpr(1.4426950408889634)
NOTHING = gl.constexpr(1 << 23)  # a column past any key


@gluon.jit
def visible_keys(
    keys, t, position, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, IS_CAUSAL: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """Which keys of tile t a query may see, and whether there is one in this place."""
    Indices, lo, hi, head, kv_len = keys
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    lanes = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
    if RATE == 1 and BLOCK_N <= BLOCK_SIZE:  # of one entry, which there is
        first = t * BLOCK_N
        key = gl.load(Indices + lo + first // BLOCK_SIZE) * BLOCK_SIZE + first % BLOCK_SIZE + lanes
        visible = (key < kv_len)[None, :]
    else:
        lanes += t * BLOCK_N
        entry = lo + lanes // KEYS
        column = gl.load(Indices + entry, mask=entry < hi, other=NOTHING)
        key = column * BLOCK_SIZE + head % RATE + (lanes % KEYS) * RATE
        visible = ((key < kv_len) & (entry < hi))[None, :]
    if IS_CAUSAL:
        visible = visible & (key[None, :] <= position[:, None])
    return visible


@gluon.jit
def hide_keys(
    s, keys, t, position, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, MASKED: gl.constexpr,
    IS_CAUSAL: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """The scores of tile t, -infinity where a query may not see the key."""
    if MASKED:
        visible = visible_keys(keys, t, position, BLOCK_N, BLOCK_SIZE, RATE, IS_CAUSAL, layout)
        s = gl.where(visible, s, -INFINITY)
    return s


@gluon.jit
def scores(q, k_tile, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """q k^T, in flight."""
    zero = gl.zeros([64, BLOCK_N], gl.float32, layout=layout)
    return warpgroup_mma(q, k_tile.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def entries_of_list(Indices, lo, hi, row, kv_len, BLOCK_SIZE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """How many entries of a list the queries of a row may see, and how many they see all keys of."""
    visible = 2147483647  # columns below
    whole = kv_len // BLOCK_SIZE
    if IS_CAUSAL:
        visible = row + 1
        whole = gl.minimum(row, whole)
    return count_below(Indices, lo, hi, visible, whole)


@gluon.jit
def place_of(places, base, t, PAIRED: gl.constexpr):
    """Where in the ring tile t lies: one after the other, or as listed where two rows share the ring."""
    if PAIRED:
        return base + gl.load(places + t)
    else:
        return base + t


@gluon.jit
def attend(
    q, k_ring, v_ring, Indices, Places, lo, hi, n_visible, n_whole, sums, base, last, position, head, kv_len, scale_log2,
    BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr,
    EVEN_KV: gl.constexpr, ORDER: gl.constexpr, UNROLL: gl.constexpr, s_layout: gl.constexpr, acc_layout: gl.constexpr,
):  # fmt: skip
    """Add the keys of one list to the sums: acc, m and l.

    The first n_visible entries are seen, the first n_whole without a mask. `base` is the place of the first tile in the ring,
    `last` the one that this warpgroup has waited for last, which is returned.
    """
    HAS_EDGE: gl.constexpr = IS_CAUSAL or not EVEN_KV or BLOCK_N * RATE > BLOCK_SIZE
    places = Places + lo
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    n_tiles = gl.cdiv(n_visible * KEYS, BLOCK_N)
    n_whole = n_whole * KEYS // BLOCK_N
    keys = Indices, lo, lo + n_visible, head, kv_len
    if ORDER == "ahead":
        sums, last = attend_ahead(
            q, k_ring, v_ring, keys, places, n_tiles, n_whole, sums, base, last, position, scale_log2, BLOCK_N, BLOCK_SIZE,
            RATE, PAIRED, IS_CAUSAL, HAS_EDGE, UNROLL, s_layout, acc_layout,
        )  # fmt: skip
    else:
        gl.static_assert(ORDER == "alone")
        sums, last = attend_alone(
            q, k_ring, v_ring, keys, places, n_tiles, n_whole, sums, base, last, position, scale_log2, BLOCK_N, BLOCK_SIZE,
            RATE, PAIRED, IS_CAUSAL, HAS_EDGE, s_layout, acc_layout,
        )  # fmt: skip
    # tiles beyond the last visible key were loaded all the same
    for t in range(n_tiles, gl.cdiv((hi - lo) * (BLOCK_SIZE // RATE), BLOCK_N)):
        place = place_of(places, base, t, PAIRED)
        if PAIRED:
            wait_past(k_ring, last, place)
        pass_over(k_ring, v_ring, place)
        last = place
    return sums, last


@gluon.jit
def attend_ahead(
    q, k_ring, v_ring, keys, places, n_tiles, n_whole, sums, base, last, position, scale_log2, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_EDGE: gl.constexpr,
    UNROLL: gl.constexpr, s_layout: gl.constexpr, acc_layout: gl.constexpr,
):  # fmt: skip
    """See the top of this file."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    STAGES: gl.constexpr = v_ring[0].shape[0]
    t = 0
    while t < n_tiles:  # once; more often where the next tile of a pair lies too far ahead in the ring
        place = place_of(places, base, t, PAIRED)
        if PAIRED:
            wait_past(k_ring, last, place)
        s = scores(kept_tile(q), get_tile(k_ring, place), BLOCK_N, s_layout)
        s = warpgroup_mma_wait(0, deps=[s])
        give_back(k_ring, place)
        acc, m, l = sums
        if t < n_whole:
            m = first_of_row(s, m, scale_log2, s_layout)
        sums = acc, m, l
        q_tile = kept_tile(q)
        # k of a tile can be loaded only while the stage of a v in use is not needed for the v before it
        last_begin = gl.minimum(n_whole, n_tiles - 1) - UNROLL
        while (t <= last_begin) & (place_of(places, base, t + UNROLL, PAIRED) - place <= STAGES):
            s, sums = attend_tiles_ahead(
                q_tile, k_ring, v_ring, keys, places, base, t, s, sums, position, scale_log2, UNROLL, BLOCK_N, BLOCK_SIZE, RATE,
                PAIRED, IS_CAUSAL, False, s_layout, acc_layout,
            )  # fmt: skip
            t += UNROLL
            place = place_of(places, base, t, PAIRED)
        q_tile = kept_tile(q)
        while (t + 1 < n_tiles) & (place_of(places, base, t + 1, PAIRED) - place <= STAGES):
            s, sums = attend_tiles_ahead(
                q_tile, k_ring, v_ring, keys, places, base, t, s, sums, position, scale_log2, 1, BLOCK_N, BLOCK_SIZE, RATE,
                PAIRED, IS_CAUSAL, HAS_EDGE, s_layout, acc_layout,
            )  # fmt: skip
            t += 1
            place = place_of(places, base, t, PAIRED)
        acc, m, l = sums
        s = hide_keys(s, keys, t, position, BLOCK_N, BLOCK_SIZE, RATE, HAS_EDGE, IS_CAUSAL, s_layout)
        p, alpha, m, l = softmax(s, m, l, scale_log2, v_ring[0].dtype, HAS_EDGE, s_layout)
        acc = scaled(acc, alpha, acc_layout)
        p = gl.convert_layout(p, p_layout)
        acc = warpgroup_mma(p, get_tile(v_ring, place), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        give_back(v_ring, place)
        sums = acc, m, l
        last = place
        t += 1
    return sums, last


@gluon.jit
def attend_tiles_ahead(
    q, k_ring, v_ring, keys, places, base, t, s, sums, position, scale_log2, N_TILES: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, MASKED: gl.constexpr,
    s_layout: gl.constexpr, acc_layout: gl.constexpr,
):  # fmt: skip
    """Tiles t to t + N_TILES - 1; `s` holds the scores of tile t, and on return those of tile t + N_TILES.

    Nothing is in flight at the end: ptxas serialises all products of a loop over whose closing one of them runs.
    """
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    acc, m, l = sums
    place = place_of(places, base, t, PAIRED)
    place_v = place
    for i in gl.static_range(N_TILES):
        place_next = place_of(places, base, t + i + 1, PAIRED)
        k_tile = get_tile(k_ring, place_next)
        s_next = scores(q, k_tile, BLOCK_N, s_layout)
        s = hide_keys(s, keys, t + i, position, BLOCK_N, BLOCK_SIZE, RATE, MASKED, IS_CAUSAL, s_layout)
        if MASKED:
            p, alpha, m, l = softmax(s, m, l, scale_log2, v_ring[0].dtype, MASKED, s_layout)
        else:
            p, alpha, m, l = later_softmax(s, m, l, scale_log2, v_ring[0].dtype, s_layout)
        p = gl.convert_layout(p, p_layout)
        if i > 0:
            acc = warpgroup_mma_wait(1, deps=[acc])
            give_back(v_ring, place_v)
        acc = scaled(acc, alpha, acc_layout)
        acc = warpgroup_mma(p, get_tile(v_ring, place), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s_next])
        give_back(k_ring, place_next)
        place_v = place
        place = place_next
    acc = warpgroup_mma_wait(0, deps=[acc])
    give_back(v_ring, place_v)
    return s, (acc, m, l)


@gluon.jit
def attend_alone(
    q, k_ring, v_ring, keys, places, n_tiles, n_whole, sums, base, last, position, scale_log2, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_EDGE: gl.constexpr,
    s_layout: gl.constexpr, acc_layout: gl.constexpr,
):  # fmt: skip
    """See the top of this file."""
    if n_whole > 0:
        sums, last = attend_tile_alone(
            kept_tile(q), k_ring, v_ring, keys, places, base, last, 0, sums, position, scale_log2, BLOCK_N, BLOCK_SIZE, RATE,
            PAIRED, IS_CAUSAL, False, False, s_layout, acc_layout,
        )  # fmt: skip
    q_tile = kept_tile(q)
    for t in range(1, n_whole):
        sums, last = attend_tile_alone(
            q_tile, k_ring, v_ring, keys, places, base, last, t, sums, position, scale_log2, BLOCK_N, BLOCK_SIZE, RATE, PAIRED,
            IS_CAUSAL, False, True, s_layout, acc_layout,
        )  # fmt: skip
    if HAS_EDGE:
        q_tile = kept_tile(q)
        for t in range(n_whole, n_tiles):
            sums, last = attend_tile_alone(
                q_tile, k_ring, v_ring, keys, places, base, last, t, sums, position, scale_log2, BLOCK_N, BLOCK_SIZE, RATE, PAIRED,
                IS_CAUSAL, True, False, s_layout, acc_layout,
            )  # fmt: skip
    return sums, last


@gluon.jit
def attend_tile_alone(
    q, k_ring, v_ring, keys, places, base, last, t, sums, position, scale_log2, BLOCK_N: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, MASKED: gl.constexpr,
    LATER: gl.constexpr, s_layout: gl.constexpr, acc_layout: gl.constexpr,
):  # fmt: skip
    """Scores, softmax and product with v of tile t; its place in the ring."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    acc, m, l = sums
    place = place_of(places, base, t, PAIRED)
    if PAIRED:
        wait_past(k_ring, last, place)
    s = scores(q, get_tile(k_ring, place), BLOCK_N, s_layout)
    s = warpgroup_mma_wait(0, deps=[s])
    give_back(k_ring, place)
    s = hide_keys(s, keys, t, position, BLOCK_N, BLOCK_SIZE, RATE, MASKED, IS_CAUSAL, s_layout)
    if LATER:
        p, alpha, m, l = later_softmax(s, m, l, scale_log2, v_ring[0].dtype, s_layout)
    else:
        p, alpha, m, l = softmax(s, m, l, scale_log2, v_ring[0].dtype, MASKED, s_layout)
    acc = scaled(acc, alpha, acc_layout)
    p = gl.convert_layout(p, p_layout)
    acc = warpgroup_mma(p, get_tile(v_ring, place), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    give_back(v_ring, place)
    return (acc, m, l), place
