"""`attend` (attend.py) of calls that ask more of their scores than products (forward_terms.py).

Any tile may have a mask or a bias, so one loop takes all tiles: what hides pairs is applied in a branch, and the softmax needs
no maxima either once a row has seen a key (`softmax_hidden`). What a tile asks for is loaded during the tile before it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma_wait

from .attend import Sums, add_tile, from_nearest, pass_over, query_operand, scores_of_columns
from .clear_rows import keep_listed_rows, keep_rows
from .forward_terms import finite_bias, hide_pairs, is_padded, terms_of_tile
from .score_terms import parts_of_distance
from .softmax import less_m, softmax_hidden
from .value_sums import add_values, rescale_acc, wait_acc

# m, which includes the bias, is off by the rounding of a sum with it. Scores of a larger bias are rounded likewise, as if it
# were added, or they would be above m.
MOST_EXACT_BIAS = gl.constexpr(1024.0)


@gluon.jit
def terms_at(keys, t, terms, n_whole, BLOCK_N: gl.constexpr):
    """The terms of tile t of a list, which it has, of which the first n_whole entries are whole."""
    first = t * BLOCK_N
    entry = first // keys.BLOCK_SIZE
    if keys.n_left is not None:
        entry = from_nearest(entry, keys.n_left)
    return terms_of_tile(
        terms, keys.indices, keys.lo + entry, first % keys.BLOCK_SIZE, entry >= n_whole, keys.BLOCK_SIZE, BLOCK_N
    )  # fmt: skip


@gluon.jit
def clear_values(rings, place, keys, terms, tile, config):
    """Clear the rows of the v tile at `place` that are no keys."""
    stage = place % rings.v.tiles.shape[0]
    if terms.padding is not None:
        if is_padded(tile):
            rings.v.wait_full(place)
            keep_listed_rows(rings.v.tiles, rings.v.tails, stage, tile.padding)
    elif config.CLEAR_VALUES:
        n_keys = keys.kv_len - tile.key0
        if n_keys < config.BLOCK_N:
            rings.v.wait_full(place)
            keep_rows(rings.v.tiles, rings.v.tails, stage, 0, n_keys)


@gluon.jit
def less_alibi(s, minus, terms, tile, q, KEYS: gl.constexpr, layout: gl.constexpr):
    """Scores in units of log2, less a number and the distance of every pair times the slope."""
    if terms.slope_log2 is not None:
        away = q.position0 - tile.key0  # of the first query from the first key
        # on one side of the diagonal distances are linear in row and column
        slope = gl.where(away + 63 <= 0, -terms.slope_log2, terms.slope_log2)
        row, column = parts_of_distance(away, KEYS, layout)
        x = s * terms.scale.log2 - (minus + row * slope) + column * slope
        if (away < KEYS - 1) & (away + 63 > 0):
            ahead = row - column
            x += (ahead - gl.abs(ahead)) * slope
        return x
    else:
        return s * terms.scale.log2 - minus


@gluon.jit
def scores_less_m(s, m, q, keys, terms, tile, config):
    """From the products of a tile what `softmax_hidden` takes."""
    BLOCK_N: gl.constexpr = config.BLOCK_N
    s = terms.scale.capped(s)
    s = hide_pairs(
        s, terms, tile, q.position0, q.row0, keys.kv_len, keys.BLOCK_SIZE, config.IS_CAUSAL, config.s_layout
    )  # fmt: skip
    bias = finite_bias(tile)
    minus = less_m(m, bias, BLOCK_N, config.s_layout)
    if terms.bias is None:
        return less_alibi(s, minus, terms, tile, q, BLOCK_N, config.s_layout)
    elif terms.slope_log2 is None:
        if gl.abs(bias) > MOST_EXACT_BIAS:
            s = ((s * terms.scale.log2 + bias) - bias) / terms.scale.log2
        return s * terms.scale.log2 - minus
    else:
        x = less_alibi(s, 0.0, terms, tile, q, BLOCK_N, config.s_layout)
        return (x + bias) - bias - minus


@gluon.jit
def softmax_of_tile(less, sums, q, terms, tile, dtype: gl.constexpr, config):
    """`softmax_hidden` of a tile with its terms."""
    return softmax_hidden(
        less, sums.m, sums.l, finite_bias(tile), terms.dropout, q.position0, tile.key0, dtype, config.s_layout
    )


@gluon.jit
def attend_with_terms(q, rings, keys, places, n_visible, n_whole, sums, last, terms, config):
    """`attend` with the terms of a head."""
    PER_ENTRY: gl.constexpr = keys.BLOCK_SIZE // config.BLOCK_N
    n_loaded = (keys.hi - keys.lo) * PER_ENTRY
    begin, end = n_loaded * 0, n_visible * PER_ENTRY
    if keys.n_left is not None:  # entries that no query sees come first
        begin, end = gl.maximum(keys.n_left - n_visible, 0) * PER_ENTRY, n_loaded
    last = pass_over(rings, places, n_loaded * 0, begin, last)
    if begin < end:
        if config.OVERLAP == "intra_warpgroup":
            sums, last = terms_overlapped(
                q, rings, keys, places, begin, end, n_whole, sums, last, terms, config
            )
        else:
            gl.static_assert(config.OVERLAP == "none")
            sums, last = terms_in_turn(q, rings, keys, places, begin, end, n_whole, sums, last, terms, config)
    return sums, pass_over(rings, places, end, n_loaded, last)


@gluon.jit
def terms_in_turn(q, rings, keys, places, begin, end, n_whole, sums, last, terms, config):
    """Overlap "none"."""
    dtype: gl.constexpr = rings.v.tiles.dtype
    tile = terms_at(keys, begin, terms, n_whole, config.BLOCK_N)
    q_tile = query_operand(q)
    for t in range(begin, end):
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        s = scores_of_columns(q_tile, rings.k, place, config)
        tile_next = terms_at(keys, gl.minimum(t + 1, end - 1), terms, n_whole, config.BLOCK_N)
        s = warpgroup_mma_wait(0, deps=[s])
        rings.k.consumer_release(place)
        less = scores_less_m(s, sums.m, q, keys, terms, tile, config)
        p, alpha, m, l = softmax_of_tile(less, sums, q, terms, tile, dtype, config)
        clear_values(rings, place, keys, terms, tile, config)
        sums = add_tile(sums.acc, p, alpha, m, l, rings.v, place, config)
        last = place
        tile = tile_next
    return sums, last


@gluon.jit
def terms_overlapped(q, rings, keys, places, begin, end, n_whole, sums, last, terms, config):
    """Overlap "intra_warpgroup"."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, config.acc_layout, 2)
    dtype: gl.constexpr = rings.v.tiles.dtype
    V_STAGES: gl.constexpr = rings.v.tiles.shape[0]
    REACH: gl.constexpr = V_STAGES if config.MAY_PASS else rings.k.tiles.shape[0] + V_STAGES - 1
    VALUE_PRODUCTS: gl.constexpr = 1 if rings.v.tails is None else 2
    # Scores are made of products before the next product with k takes their registers. Those of the next tile while the product
    # with v runs, except with softcap, where that was slower.
    IS_EARLY: gl.constexpr = terms.scale.before_cap is None
    t = begin
    while t < end:  # once; more often where the next tile of two rows is too far ahead in the ring
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        s = scores_of_columns(query_operand(q), rings.k, place, config)
        tile = terms_at(keys, t, terms, n_whole, config.BLOCK_N)
        s = warpgroup_mma_wait(0, deps=[s])
        rings.k.consumer_release(place)
        if IS_EARLY:
            s = scores_less_m(s, sums.m, q, keys, terms, tile, config)
        q_tile = query_operand(q)
        while (t + 1 < end) & (places.of_tile(t + 1) - place <= REACH):
            tile_next = terms_at(keys, t + 1, terms, n_whole, config.BLOCK_N)
            clear_values(rings, place, keys, terms, tile, config)
            if not IS_EARLY:
                s = scores_less_m(s, sums.m, q, keys, terms, tile, config)
            place_next = places.of_tile(t + 1)
            s_next = scores_of_columns(q_tile, rings.k, place_next, config)
            p, alpha, m, l = softmax_of_tile(s, sums, q, terms, tile, dtype, config)
            p = gl.convert_layout(p, p_layout)
            acc = rescale_acc(sums.acc, alpha, config)
            acc = add_values(acc, p, rings.v, place, config)
            s = warpgroup_mma_wait(VALUE_PRODUCTS, deps=[s_next])
            rings.k.consumer_release(place_next)
            if IS_EARLY:
                s = scores_less_m(s, m, q, keys, terms, tile_next, config)
            acc = wait_acc(acc, 0)
            rings.v.consumer_release(place)
            sums = Sums(acc, m, l)
            tile = tile_next
            place = place_next
            t += 1
        clear_values(rings, place, keys, terms, tile, config)
        if not IS_EARLY:
            s = scores_less_m(s, sums.m, q, keys, terms, tile, config)
        p, alpha, m, l = softmax_of_tile(s, sums, q, terms, tile, dtype, config)
        sums = add_tile(sums.acc, p, alpha, m, l, rings.v, place, config)
        last = place
        t += 1
    return sums, last
