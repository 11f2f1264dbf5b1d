"""What one warpgroup of the forward kernel does with a list of keys: 64 queries, a ring of k and v tiles, online softmax.

Two orders of the same steps, because products run in the background and softmax needs registers:
    attend_ahead   the scores of the next tile run during the softmax of this one: two tiles of scores are held
    attend_behind  the product of p and v of the tile before runs during it (Shah et al., FlashAttention-3,
                   arXiv:2407.08608, algorithm 2): what fits at head_dim 128 with tiles of 128 keys
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from .ring import get_tile, give_back, pass_over, wait_past
from .schedule import count_below

INFINITY = gl.constexpr(float("inf"))
LOG2E = gl.constexpr(1.4426950408889634)
NOTHING = gl.constexpr(1 << 23)  # a column past any key


@gluon.jit
def hide_keys(
    s, Indices, e, hi, position, head, kv_len, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr,
    MASKED: gl.constexpr, IS_CAUSAL: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """The scores of the tile that begins with entry e, -infinity where a query may not see the key."""
    if MASKED:
        KEYS: gl.constexpr = BLOCK_SIZE // RATE
        lanes = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
        entry = e + lanes // KEYS
        column = gl.load(Indices + entry, mask=entry < hi, other=NOTHING)
        key = column * BLOCK_SIZE + head % RATE + (lanes % KEYS) * RATE
        visible = ((key < kv_len) & (entry < hi))[None, :]
        if IS_CAUSAL:
            visible = visible & (key[None, :] <= position[:, None])
        s = gl.where(visible, s, -INFINITY)
    return s


@gluon.jit
def softmax(s, m, l, scale_log2, MASKED: gl.constexpr):
    """Online softmax of one tile of scores, in units of log2: p, the factor of what came before, new m and l."""
    m_new = gl.maximum(m, gl.max(s, 1) * scale_log2)
    m_safe = m_new
    if MASKED:
        m_safe = gl.where(m_new == -INFINITY, 0.0, m_new)  # a query that has seen nothing yet
    p = gl.exp2(s * scale_log2 - m_safe[:, None])
    alpha = gl.exp2(m - m_safe)
    return p, alpha, m_new, l * alpha + gl.sum(p, 1)


@gluon.jit
def scores(q, k_tile, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """q k^T, in flight."""
    zero = gl.zeros([64, BLOCK_N], gl.float32, layout=layout)
    return warpgroup_mma(q, k_tile.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def tiles_of_list(
    Indices, lo, hi, position0, kv_len, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
):  # fmt: skip
    """The end of what the queries from position0 on may see, how many tiles that is, and how many need no mask."""
    JOIN: gl.constexpr = BLOCK_N // (BLOCK_SIZE // RATE)
    n_visible = hi - lo
    n_whole = n_visible
    if IS_CAUSAL:
        n_visible = count_below(Indices, lo, hi, (position0 + 63) // BLOCK_SIZE + 1)
        n_whole = count_below(
            Indices, lo, hi, gl.minimum((position0 + 1) // BLOCK_SIZE, kv_len // BLOCK_SIZE)
        )
    elif not EVEN_KV:
        n_whole = count_below(Indices, lo, hi, kv_len // BLOCK_SIZE)
    return lo + n_visible, gl.cdiv(n_visible, JOIN), n_whole // JOIN


@gluon.jit
def place_of(places, base, t, PAIRED: gl.constexpr):
    """Where in the ring tile t lies: one after the other, or as listed where two rows share the ring."""
    if PAIRED:
        return base + gl.load(places + t)
    else:
        return base + t


@gluon.jit
def attend_ahead(
    q, k_ring, v_ring, Indices, Places, lo, hi, acc, m, l, base, last, position0, position, head, kv_len, scale_log2,
    BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, STAGES: gl.constexpr,
    PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    UNROLL: gl.constexpr, s_layout: gl.constexpr, acc_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Add the keys of one list to the accumulators.

    `base` is the place of its first tile in the ring, `last` the one that this warpgroup has waited for last.
    """
    JOIN: gl.constexpr = BLOCK_N // (BLOCK_SIZE // RATE)
    HAS_EDGE: gl.constexpr = IS_CAUSAL or not EVEN_KV or JOIN > 1
    places = Places + lo
    hi_visible, n_tiles, n_whole = tiles_of_list(
        Indices, lo, hi, position0, kv_len, BLOCK_N, BLOCK_SIZE, RATE, IS_CAUSAL, EVEN_KV
    )
    t = 0
    while t < n_tiles:  # once; more often where the next tile of a pair lies too far ahead in the ring
        place = place_of(places, base, t, PAIRED)
        if PAIRED:
            wait_past(k_ring, last, place, STAGES)
        s = scores(q, get_tile(k_ring, place, STAGES), BLOCK_N, s_layout)
        s = warpgroup_mma_wait(0, deps=[s])
        give_back(k_ring, place, STAGES)
        # k of a tile can be loaded only while the stage of a v in use is not needed for it
        while (t + UNROLL < n_whole) & (place_of(places, base, t + UNROLL, PAIRED) - place <= STAGES):
            s, acc, m, l = attend_tiles_ahead(
                q, k_ring, v_ring, Indices, places, lo, hi_visible, base, t, s, acc, m, l, position, head, kv_len, scale_log2,
                UNROLL, BLOCK_N, BLOCK_SIZE, RATE, STAGES, PAIRED, IS_CAUSAL, False, s_layout, acc_layout,
                p_layout,
            )  # fmt: skip
            t += UNROLL
            place = place_of(places, base, t, PAIRED)
        while (t + 1 < n_tiles) & (place_of(places, base, t + 1, PAIRED) - place <= STAGES):
            s, acc, m, l = attend_tiles_ahead(
                q, k_ring, v_ring, Indices, places, lo, hi_visible, base, t, s, acc, m, l, position, head, kv_len, scale_log2,
                1, BLOCK_N, BLOCK_SIZE, RATE, STAGES, PAIRED, IS_CAUSAL, HAS_EDGE, s_layout, acc_layout,
                p_layout,
            )  # fmt: skip
            t += 1
            place = place_of(places, base, t, PAIRED)
        s = hide_keys(
            s, Indices, lo + t * JOIN, hi_visible, position, head, kv_len, BLOCK_N, BLOCK_SIZE, RATE, HAS_EDGE, IS_CAUSAL, s_layout,
        )  # fmt: skip
        p, alpha, m, l = softmax(s, m, l, scale_log2, HAS_EDGE)
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, acc_layout))[:, None]
        p = gl.convert_layout(p.to(q.dtype), p_layout)
        acc = warpgroup_mma(p, get_tile(v_ring, place, STAGES), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        give_back(v_ring, place, STAGES)
        last = place
        t += 1
    # tiles beyond the last visible key were loaded all the same
    for t_hidden in range(n_tiles, gl.cdiv(hi - lo, JOIN)):
        place = place_of(places, base, t_hidden, PAIRED)
        if PAIRED:
            wait_past(k_ring, last, place, STAGES)
        pass_over(k_ring, v_ring, place, STAGES)
        last = place
    return acc, m, l, last


@gluon.jit
def attend_tiles_ahead(
    q, k_ring, v_ring, Indices, places, lo, hi, base, t, s, acc, m, l, position, head, kv_len, scale_log2,
    N_TILES: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr,
    STAGES: gl.constexpr, PAIRED: gl.constexpr, IS_CAUSAL: gl.constexpr, MASKED: gl.constexpr,
    s_layout: gl.constexpr, acc_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Tiles t to t + N_TILES - 1; `s` holds the scores of tile t, and on return those of tile t + N_TILES.

    Nothing is in flight at the end: ptxas serialises all products of a loop over whose closing one of them runs.
    """
    JOIN: gl.constexpr = BLOCK_N // (BLOCK_SIZE // RATE)
    place = place_of(places, base, t, PAIRED)
    place_v = place
    for i in gl.static_range(N_TILES):
        place_next = place_of(places, base, t + i + 1, PAIRED)
        k_tile = get_tile(k_ring, place_next, STAGES)
        s_next = scores(q, k_tile, BLOCK_N, s_layout)
        s = hide_keys(
            s, Indices, lo + (t + i) * JOIN, hi, position, head, kv_len, BLOCK_N, BLOCK_SIZE, RATE, MASKED, IS_CAUSAL, s_layout,
        )  # fmt: skip
        p, alpha, m, l = softmax(s, m, l, scale_log2, MASKED)
        p = gl.convert_layout(p.to(q.dtype), p_layout)
        if i > 0:
            acc = warpgroup_mma_wait(1, deps=[acc])
            give_back(v_ring, place_v, STAGES)
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, acc_layout))[:, None]
        acc = warpgroup_mma(p, get_tile(v_ring, place, STAGES), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s_next])
        give_back(k_ring, place_next, STAGES)
        place_v = place
        place = place_next
    acc = warpgroup_mma_wait(0, deps=[acc])
    give_back(v_ring, place_v, STAGES)
    return s, acc, m, l


@gluon.jit
def attend_list(
    q, k_ring, v_ring, Indices, lo, hi, acc, m, l, base, position0, position, head, kv_len, scale_log2,
    BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, AHEAD: gl.constexpr,
    UNROLL: gl.constexpr, s_layout: gl.constexpr, acc_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Add the keys of one list that both warpgroups see; also the place after its tiles in the ring."""
    if AHEAD:
        acc, m, l, _ = attend_ahead(
            q, k_ring, v_ring, Indices, Indices, lo, hi, acc, m, l, base, base - 1, position0, position, head, kv_len,
            scale_log2, BLOCK_N, BLOCK_SIZE, RATE, STAGES, False, IS_CAUSAL, EVEN_KV, UNROLL, s_layout,
            acc_layout, p_layout,
        )  # fmt: skip
    else:
        acc, m, l = attend_behind(
            q, k_ring, v_ring, Indices, lo, hi, acc, m, l, base, position0, position, head, kv_len, scale_log2, BLOCK_N,
            BLOCK_SIZE, RATE, STAGES, IS_CAUSAL, EVEN_KV, s_layout, acc_layout, p_layout,
        )  # fmt: skip
    return acc, m, l, base + gl.cdiv(hi - lo, BLOCK_N // (BLOCK_SIZE // RATE))


@gluon.jit
def attend_behind(
    q, k_ring, v_ring, Indices, lo, hi, acc, m, l, base, position0, position, head, kv_len, scale_log2,
    BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, s_layout: gl.constexpr,
    acc_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Add the keys of one list to the accumulators; `base` is the place of its first tile in the ring."""
    JOIN: gl.constexpr = BLOCK_N // (BLOCK_SIZE // RATE)
    HAS_EDGE: gl.constexpr = IS_CAUSAL or not EVEN_KV or JOIN > 1
    hi_visible, n_tiles, n_whole = tiles_of_list(
        Indices, lo, hi, position0, kv_len, BLOCK_N, BLOCK_SIZE, RATE, IS_CAUSAL, EVEN_KV
    )
    if n_tiles > 0:
        k_tile = get_tile(k_ring, base, STAGES)
        s = scores(q, k_tile, BLOCK_N, s_layout)
        s = warpgroup_mma_wait(0, deps=[s])
        give_back(k_ring, base, STAGES)
        s = hide_keys(
            s, Indices, lo, hi_visible, position, head, kv_len, BLOCK_N, BLOCK_SIZE, RATE, HAS_EDGE, IS_CAUSAL, s_layout,
        )  # fmt: skip
        p, alpha, m, l = softmax(s, m, l, scale_log2, HAS_EDGE)
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, acc_layout))[:, None]
        p = gl.convert_layout(p.to(q.dtype), p_layout)
        for t in range(1, n_whole):
            acc, m, l, p = attend_tile_behind(
                q, k_ring, v_ring, Indices, lo, hi_visible, base, t, acc, m, l, p, position, head, kv_len, scale_log2, BLOCK_N,
                BLOCK_SIZE, RATE, STAGES, IS_CAUSAL, False, s_layout, acc_layout, p_layout,
            )  # fmt: skip
        if HAS_EDGE:
            for t in range(gl.maximum(1, n_whole), n_tiles):
                acc, m, l, p = attend_tile_behind(
                    q, k_ring, v_ring, Indices, lo, hi_visible, base, t, acc, m, l, p, position, head, kv_len, scale_log2,
                    BLOCK_N, BLOCK_SIZE, RATE, STAGES, IS_CAUSAL, True, s_layout, acc_layout, p_layout,
                )  # fmt: skip
        last = base + n_tiles - 1
        acc = warpgroup_mma(p, get_tile(v_ring, last, STAGES), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        give_back(v_ring, last, STAGES)
    for t in range(n_tiles, gl.cdiv(hi - lo, JOIN)):
        pass_over(k_ring, v_ring, base + t, STAGES)
    return acc, m, l


@gluon.jit
def attend_tile_behind(
    q, k_ring, v_ring, Indices, lo, hi, base, t, acc, m, l, p, position, head, kv_len, scale_log2, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, RATE: gl.constexpr, STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr, MASKED: gl.constexpr, s_layout: gl.constexpr,
    acc_layout: gl.constexpr, p_layout: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of tile t while the product of p and v of the tile before runs."""
    JOIN: gl.constexpr = BLOCK_N // (BLOCK_SIZE // RATE)
    place = base + t
    k_tile = get_tile(k_ring, place, STAGES)
    s = scores(q, k_tile, BLOCK_N, s_layout)
    acc = warpgroup_mma(p, get_tile(v_ring, place - 1, STAGES), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    give_back(k_ring, place, STAGES)
    s = hide_keys(
        s, Indices, lo + t * JOIN, hi, position, head, kv_len, BLOCK_N, BLOCK_SIZE, RATE, MASKED, IS_CAUSAL, s_layout,
    )  # fmt: skip
    p_next, alpha, m, l = softmax(s, m, l, scale_log2, MASKED)
    acc = warpgroup_mma_wait(0, deps=[acc])
    give_back(v_ring, place - 1, STAGES)
    acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, acc_layout))[:, None]
    return acc, m, l, gl.convert_layout(p_next.to(q.dtype), p_layout)
