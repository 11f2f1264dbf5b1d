"""What one warpgroup of the forward kernel does with a list of keys: 64 queries, rings of k and v tiles, online softmax.

Products run asynchronously, and whatever runs beside them needs registers, so the steps come in two orders:
    "intra_warpgroup"   the scores of the next tile are computed during the softmax of this one: two tiles of scores are live
    "none"              nothing overlaps inside a warpgroup; instead two programs share the multiprocessor, each with half of
                        the registers: best where the softmax takes as long as the products
(FlashAttention-3, Shah et al., arXiv:2407.08608, also overlaps the product of p and v of the previous tile: slower here.)
A list is cut into tiles of BLOCK_N keys: a part of an entry, one entry, or the kept keys of several (token dilation).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from ..gluon_names import aggregate
from .clear_rows import keep_rows
from .pipeline import Ring
from .softmax import INFINITY, first_max, softmax, softmax_unmasked
from .tile_masks import hide, words_to_edge
from .tile_scheduler import count_below
from .tma import kept_tile
from .value_sums import ValueSums, add_values, rescale_acc, wait_acc

NO_COLUMN = gl.constexpr(1 << 23)  # a column past any key


@aggregate
class KeyList:
    """The keys of one list that queries of a head read: 1 of RATE tokens of every listed block.

    n_left: the first so many entries come from the last to the first, the nearest first; None where all come in order.
    """

    indices: gl.tensor
    lo: gl.tensor
    hi: gl.tensor
    head: gl.tensor
    kv_len: gl.tensor
    n_left: gl.tensor | gl.constexpr
    RATE: gl.constexpr
    BLOCK_SIZE: gl.constexpr


@gluon.jit
def from_nearest(i, n_left):
    """The entry, or the place, that is number i where the first n_left come from the last to the first."""
    return gl.where(i < n_left, n_left - 1 - i, i)


@aggregate
class RingPlaces:
    """Where in the ring the tiles of a list are: from `base` on one after the other, or (SHARED by two rows) as listed.

    n_left, left_places, right_place: as of a `ListPart`, or None.
    """

    base: gl.tensor
    listed: gl.tensor
    n_left: gl.tensor | gl.constexpr
    left_places: gl.tensor | gl.constexpr
    right_place: gl.tensor | gl.constexpr
    SHARED: gl.constexpr

    @gluon.jit
    def of_tile(self, t):
        """The place of tile t."""
        if self.SHARED and self.n_left is not None:
            place = gl.load(self.listed + from_nearest(t, self.n_left))
            left, right = self.left_places - 1 - place, self.left_places + place - self.right_place
            return self.base + gl.where(t < self.n_left, left, right)
        elif self.SHARED:
            return self.base + gl.load(self.listed + t)
        else:
            return self.base + t


@aggregate
class QueryTile:
    """The 64 queries of a warpgroup: where in shared memory they are, their positions, the first one, its place in its block."""

    tiles: gl.shared_memory_descriptor
    tails: gl.shared_memory_descriptor | gl.constexpr
    slot: gl.tensor
    position: gl.tensor
    position0: gl.tensor
    row0: gl.constexpr


@aggregate
class QueryOperand:
    """The queries of a warpgroup as the operand of a product, and their tail or None."""

    main: gl.shared_memory_descriptor
    tail: gl.shared_memory_descriptor | gl.constexpr


@aggregate
class KeyRings:
    """The rings of k and of v tiles; a tile has the same place in both."""

    k: Ring
    v: Ring


@aggregate
class Sums:
    """Online softmax: unscaled output, maximum and sum of every query."""

    acc: ValueSums
    m: gl.tensor
    l: gl.tensor


@aggregate
class AttendConfig:
    """Constants of the forward. CLEAR_VALUES: behind the last key of a sequence v may be anything.

    EDGE_IS_LAST: tiles are of one entry each, and only those of the last one have an edge, with few exceptions.
    QK_DIM: columns of head_dim of q and k. MAY_PASS: some places of the rings have no tile.

    The next k must not wait for the v in use. This v may keep a v of the other warpgroup from being loaded, and that warpgroup
    then a k from being released, so k may be ahead by less than both rings have stages (REACH). At a place without a tile
    the loading of k waits for that of v: then by no more than v has stages.
    """

    BLOCK_N: gl.constexpr
    QK_DIM: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr
    OVERLAP: gl.constexpr
    UNROLL: gl.constexpr
    CLEAR_VALUES: gl.constexpr
    EDGE_IS_LAST: gl.constexpr
    MAY_PASS: gl.constexpr
    s_layout: gl.constexpr
    acc_layout: gl.constexpr
    tail_layout: gl.constexpr


@gluon.jit
def visible_keys(keys, t, position, BLOCK_N: gl.constexpr, IS_CAUSAL: gl.constexpr, layout: gl.constexpr):
    """Which keys of tile t a query may see; none where the list has no more keys."""
    BLOCK_SIZE: gl.constexpr = keys.BLOCK_SIZE
    RATE: gl.constexpr = keys.RATE
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    lanes = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
    if RATE == 1 and BLOCK_N <= BLOCK_SIZE:  # all of one entry, which exists
        first = t * BLOCK_N
        key = gl.load(keys.indices + keys.lo + first // BLOCK_SIZE) * BLOCK_SIZE + first % BLOCK_SIZE + lanes
        visible = (key < keys.kv_len)[None, :]
    else:
        lanes += t * BLOCK_N
        entry = keys.lo + lanes // KEYS
        column = gl.load(keys.indices + entry, mask=entry < keys.hi, other=NO_COLUMN)
        key = column * BLOCK_SIZE + keys.head % RATE + (lanes % KEYS) * RATE
        visible = ((key < keys.kv_len) & (entry < keys.hi))[None, :]
    if IS_CAUSAL:
        visible = visible & (key[None, :] <= position[:, None])
    return visible


@gluon.jit
def apply_mask(s, keys, t, position, MASKED: gl.constexpr, config):
    """The scores of tile t, -infinity where a query may not see the key."""
    if MASKED:
        visible = visible_keys(keys, t, position, config.BLOCK_N, config.IS_CAUSAL, config.s_layout)
        s = gl.where(visible, s, -INFINITY)
    return s


@gluon.jit
def first_key(keys, t, BLOCK_N: gl.constexpr):
    """The position of the first key of tile t, which is a part of one entry."""
    first = t * BLOCK_N
    return (
        gl.load(keys.indices + keys.lo + first // keys.BLOCK_SIZE) * keys.BLOCK_SIZE + first % keys.BLOCK_SIZE
    )


@gluon.jit
def softmax_to_edge(s, keys, key0, position0, is_whole, m, l, scale_log2, dtype: gl.constexpr, config):
    """`softmax` of a tile with its first key; hides keys in a branch, as most tiles are whole."""
    WORDS: gl.constexpr = config.BLOCK_N // 32
    if not is_whole:
        s = hide(s, words_to_edge(keys.kv_len, position0, key0, config.IS_CAUSAL, WORDS), config.s_layout)
        m = first_max(s, m, scale_log2, config.s_layout)
    has_seen = m != -INFINITY
    p, alpha, m_new, l = softmax_unmasked(
        s, gl.where(has_seen, m, 0.0), l, scale_log2, dtype, config.s_layout
    )
    return p, alpha, gl.where(has_seen, m_new, m), l


@gluon.jit
def clear_values(rings, place, keys, key0, config):
    """Clear the rows of the v tile at `place`, which begins with key0, that are behind the last key of the sequence."""
    n_keys = keys.kv_len - key0
    if n_keys < config.BLOCK_N:
        rings.v.wait_full(place)
        keep_rows(rings.v.tiles, rings.v.tails, place % rings.v.tiles.shape[0], 0, n_keys)


@gluon.jit
def scores(q, k_tile, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """q k^T, asynchronous."""
    zero = gl.zeros([64, BLOCK_N], gl.float32, layout=layout)
    return warpgroup_mma(q, k_tile.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def query_operand(q):
    """The queries as the operand of a product; ask again for every loop."""
    if q.tails is None:
        return QueryOperand(kept_tile(q.tiles, q.slot), None)
    else:
        return QueryOperand(kept_tile(q.tiles, q.slot), kept_tile(q.tails, q.slot))


@gluon.jit
def scores_of_columns(q, ring, place, config):
    """`scores` with the k tile at `place`, of the columns of head_dim that count: all, the first half or three quarters."""
    D: gl.constexpr = q.main.shape[1]
    HALF: gl.constexpr = D // 2
    k_tile = ring.consumer_wait(place)
    if config.QK_DIM >= D:
        s = scores(q.main, k_tile, config.BLOCK_N, config.s_layout)
        if ring.tails is not None:
            s = warpgroup_mma(q.tail, ring.tail(place).permute([1, 0]), s, is_async=True)
        return s
    else:
        gl.static_assert(config.QK_DIM == HALF or config.QK_DIM == HALF + HALF // 2)
        s = scores(
            q.main.slice(0, HALF, dim=1), k_tile.slice(0, HALF, dim=1), config.BLOCK_N, config.s_layout
        )
        if config.QK_DIM > HALF:
            k_quarter = k_tile.slice(HALF, HALF // 2, dim=1)
            q_quarter = q.main.slice(HALF, HALF // 2, dim=1)
            s = warpgroup_mma(q_quarter, k_quarter.permute([1, 0]), s, is_async=True)
        return s


@gluon.jit
def entries_of_list(Indices, lo, hi, row, kv_len, BLOCK_SIZE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """How many entries of a list some query of a row sees, and how many every query sees whole."""
    visible = 2147483647  # columns below
    whole = kv_len // BLOCK_SIZE
    if IS_CAUSAL:
        visible = row + 1
        whole = gl.minimum(row, whole)
    return count_below(Indices, lo, hi, visible, whole)


@gluon.jit
def attend(q, rings, keys, places, n_visible, n_whole, sums, last, scale_log2, config):
    """Add the keys of one list to the sums; also return the last tile known to have arrived.

    The first n_visible entries are seen, the first n_whole without a mask.
    """
    BLOCK_N: gl.constexpr = config.BLOCK_N
    BLOCK_SIZE: gl.constexpr = keys.BLOCK_SIZE
    RATE: gl.constexpr = keys.RATE
    HAS_EDGE: gl.constexpr = config.IS_CAUSAL or not config.EVEN_KV or BLOCK_N * RATE > BLOCK_SIZE
    KEYS: gl.constexpr = BLOCK_SIZE // RATE
    n_tiles = gl.cdiv(n_visible * KEYS, BLOCK_N)
    n_whole = n_whole * KEYS // BLOCK_N
    seen = KeyList(keys.indices, keys.lo, keys.lo + n_visible, keys.head, keys.kv_len, None, RATE, BLOCK_SIZE)
    if config.OVERLAP == "intra_warpgroup":
        sums, last = attend_overlapped(
            q, rings, seen, places, n_tiles, n_whole, sums, last, scale_log2, HAS_EDGE, config
        )
    else:
        gl.static_assert(config.OVERLAP == "none")
        sums, last = attend_in_turn(
            q, rings, seen, places, n_tiles, n_whole, sums, last, scale_log2, HAS_EDGE, config
        )
    # tiles after the last visible key were loaded all the same
    n_loaded = gl.cdiv((keys.hi - keys.lo) * (BLOCK_SIZE // RATE), BLOCK_N)
    return sums, pass_over(rings, places, n_tiles, n_loaded, last)


@gluon.jit
def add_tile(acc, p, alpha, m, l, ring, place, config):
    """The sums after the softmax of a tile: p, the factors alpha for earlier sums, and its m and l; releases the v tile."""
    layout: gl.constexpr = gl.DotOperandLayout(0, config.acc_layout, 2)
    acc = rescale_acc(acc, alpha, config)
    p = gl.convert_layout(p, layout)
    acc = wait_acc(add_values(acc, p, ring, place, config), 0)
    ring.consumer_release(place)
    return Sums(acc, m, l)


@gluon.jit
def pass_over(rings, places, begin, end, last):
    """Release tiles unread; return the last one known to have arrived."""
    for t in range(begin, end):
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        rings.k.skip(place)
        rings.v.skip(place)
        last = place
    return last


@gluon.jit
def attend_overlapped(
    q, rings, keys, places, n_tiles, n_whole, sums, last, scale_log2, HAS_EDGE: gl.constexpr, config
):
    """Overlap "intra_warpgroup"."""
    V_STAGES: gl.constexpr = rings.v.tiles.shape[0]
    REACH: gl.constexpr = V_STAGES if config.MAY_PASS else rings.k.tiles.shape[0] + V_STAGES - 1
    UNROLL: gl.constexpr = config.UNROLL
    LAST_IS_EDGE: gl.constexpr = HAS_EDGE and config.EDGE_IS_LAST
    t = 0
    while t < n_tiles:  # once; more often where the next tile of two rows is too far ahead in the ring
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        s = scores_of_columns(query_operand(q), rings.k, place, config)
        key0 = 0
        if LAST_IS_EDGE:  # of the last tile, long before it is needed
            key0 = first_key(keys, n_tiles - 1, config.BLOCK_N)
        s = warpgroup_mma_wait(0, deps=[s])
        rings.k.consumer_release(place)
        m = sums.m
        if t < n_whole:
            m = first_max(s, m, scale_log2, config.s_layout)
        sums = Sums(sums.acc, m, sums.l)
        q_tile = query_operand(q)
        last_begin = gl.minimum(n_whole, n_tiles - 1) - UNROLL
        while (t <= last_begin) & (places.of_tile(t + UNROLL) - place <= REACH):
            s, sums = attend_tiles_overlapped(
                q_tile, q.position, rings, keys, places, t, s, sums, scale_log2, UNROLL, False, config
            )
            t += UNROLL
            place = places.of_tile(t)
        if not LAST_IS_EDGE:
            q_tile = query_operand(q)
            while (t + 1 < n_tiles) & (places.of_tile(t + 1) - place <= REACH):
                s, sums = attend_tiles_overlapped(
                    q_tile, q.position, rings, keys, places, t, s, sums, scale_log2, 1, HAS_EDGE, config
                )
                t += 1
                place = places.of_tile(t)
        if LAST_IS_EDGE:
            if t < n_tiles - 1:  # the next tile is too far ahead
                key0 = first_key(keys, t, config.BLOCK_N)
            p, alpha, m, l = softmax_to_edge(
                s, keys, key0, q.position0, t < n_whole, sums.m, sums.l, scale_log2, rings.v.tiles.dtype, config
            )  # fmt: skip
            if config.CLEAR_VALUES:
                clear_values(rings, place, keys, key0, config)
        else:
            gl.static_assert(not config.CLEAR_VALUES)
            s = apply_mask(s, keys, t, q.position, HAS_EDGE, config)
            p, alpha, m, l = softmax(
                s, sums.m, sums.l, scale_log2, rings.v.tiles.dtype, HAS_EDGE, config.s_layout
            )
        sums = add_tile(sums.acc, p, alpha, m, l, rings.v, place, config)
        last = place
        t += 1
    return sums, last


@gluon.jit
def attend_tiles_overlapped(
    q_tile,
    position,
    rings,
    keys,
    places,
    t,
    s,
    sums,
    scale_log2,
    N_TILES: gl.constexpr,
    MASKED: gl.constexpr,
    config,
):
    """Tiles t to t + N_TILES - 1; `s` holds the scores of tile t, and on return those of tile t + N_TILES.

    Nothing is in flight at the end: ptxas serialises all products of a loop if one of them crosses its end.
    """
    p_layout: gl.constexpr = gl.DotOperandLayout(0, config.acc_layout, 2)
    dtype: gl.constexpr = rings.v.tiles.dtype
    SCORE_PRODUCTS: gl.constexpr = 1 if rings.k.tails is None else 2
    VALUE_PRODUCTS: gl.constexpr = 1 if rings.v.tails is None else 2
    acc, m, l = sums.acc, sums.m, sums.l
    place = places.of_tile(t)
    place_v = place
    for i in gl.static_range(N_TILES):
        place_next = places.of_tile(t + i + 1)
        s_next = scores_of_columns(q_tile, rings.k, place_next, config)
        s = apply_mask(s, keys, t + i, position, MASKED, config)
        if MASKED:
            p, alpha, m, l = softmax(s, m, l, scale_log2, dtype, MASKED, config.s_layout)
        else:
            p, alpha, m, l = softmax_unmasked(s, m, l, scale_log2, dtype, config.s_layout)
        p = gl.convert_layout(p, p_layout)
        if i > 0:
            acc = wait_acc(acc, SCORE_PRODUCTS)
            rings.v.consumer_release(place_v)
        acc = rescale_acc(acc, alpha, config)
        acc = add_values(acc, p, rings.v, place, config)
        s = warpgroup_mma_wait(VALUE_PRODUCTS, deps=[s_next])
        rings.k.consumer_release(place_next)
        place_v = place
        place = place_next
    acc = wait_acc(acc, 0)
    rings.v.consumer_release(place_v)
    return s, Sums(acc, m, l)


@gluon.jit
def attend_in_turn(
    q, rings, keys, places, n_tiles, n_whole, sums, last, scale_log2, HAS_EDGE: gl.constexpr, config
):
    """Overlap "none"."""
    if n_whole > 0:
        sums, last = attend_tile(
            query_operand(q), q.position, rings, keys, places, last, 0, sums, scale_log2, False, False, config
        )  # fmt: skip
    q_tile = query_operand(q)
    for t in range(1, n_whole):
        sums, last = attend_tile(
            q_tile, q.position, rings, keys, places, last, t, sums, scale_log2, False, True, config
        )
    if HAS_EDGE:
        q_tile = query_operand(q)
        for t in range(n_whole, n_tiles):
            sums, last = attend_tile(
                q_tile, q.position, rings, keys, places, last, t, sums, scale_log2, True, False, config
            )
    return sums, last


@gluon.jit
def attend_tile(
    q_tile, position, rings, keys, places, last, t, sums, scale_log2, MASKED: gl.constexpr, HAS_MAX: gl.constexpr, config
):  # fmt: skip
    """Scores, softmax and product with v of tile t; also return its place. HAS_MAX: every query has seen a key."""
    dtype: gl.constexpr = rings.v.tiles.dtype
    place = places.of_tile(t)
    if places.SHARED:
        rings.k.wait_past(last, place)
    s = scores_of_columns(q_tile, rings.k, place, config)
    s = warpgroup_mma_wait(0, deps=[s])
    rings.k.consumer_release(place)
    s = apply_mask(s, keys, t, position, MASKED, config)
    if HAS_MAX:
        p, alpha, m, l = softmax_unmasked(s, sums.m, sums.l, scale_log2, dtype, config.s_layout)
    else:
        p, alpha, m, l = softmax(s, sums.m, sums.l, scale_log2, dtype, MASKED, config.s_layout)
    if MASKED and config.CLEAR_VALUES:
        clear_values(rings, place, keys, first_key(keys, t, config.BLOCK_N), config)
    return add_tile(sums.acc, p, alpha, m, l, rings.v, place, config), place
