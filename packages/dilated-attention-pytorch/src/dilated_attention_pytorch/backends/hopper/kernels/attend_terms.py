"""`attend` (attend.py) of calls that ask more of their scores than products (tile_scores.py).

Any tile may have a mask or a bias, so one loop takes all tiles: what hides pairs is applied in a branch, and the softmax needs
no maxima either once a row has seen a key (`softmax_hidden`). What a tile asks for is loaded during the tile before it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from .attend import Sums, pass_over, scores
from .clear_rows import keep_listed_rows, keep_rows
from .softmax import less_m, rescale_acc, softmax_hidden
from .tile_scores import capped, distances, finite_bias, hide_pairs, is_padded, terms_of_tile
from .tma import kept_tile


@gluon.jit
def terms_at(keys, t, terms, BLOCK_N: gl.constexpr):
    """The terms of tile t of a list, which it has."""
    first = t * BLOCK_N
    return terms_of_tile(
        terms, keys.indices, keys.lo + first // keys.BLOCK_SIZE, first % keys.BLOCK_SIZE, keys.BLOCK_SIZE, BLOCK_N
    )  # fmt: skip


@gluon.jit
def clear_values(rings, place, keys, terms, tile, config):
    """Clear the rows of the v tile at `place` that are no keys."""
    stage = place % rings.v.tiles.shape[0]
    if terms.padding is not None:
        if is_padded(tile):
            rings.v.wait_full(place)
            keep_listed_rows(rings.v.tiles, stage, tile.padding)
    elif config.CLEAR_VALUES:
        n_keys = keys.kv_len - tile.key0
        if n_keys < config.BLOCK_N:
            rings.v.wait_full(place)
            keep_rows(rings.v.tiles, stage, 0, n_keys)


@gluon.jit
def softmax_of_tile(s, sums, q, keys, terms, tile, has_edge, dtype: gl.constexpr, config):
    """p, the factor for earlier sums, the new m and l, from the products of a tile."""
    BLOCK_N: gl.constexpr = config.BLOCK_N
    s = capped(s, terms)
    s = hide_pairs(
        s, terms, tile, has_edge, q.position0, q.row0, keys.kv_len, keys.BLOCK_SIZE, config.IS_CAUSAL, config.s_layout
    )  # fmt: skip
    bias = finite_bias(tile)
    minus = less_m(sums.m, bias, BLOCK_N, config.s_layout)
    if terms.slope_log2 is not None:
        minus += terms.slope_log2 * distances(q.position0, tile.key0, BLOCK_N, config.s_layout)
    return softmax_hidden(s * terms.scale_log2 - minus, sums.m, sums.l, bias, dtype, config.s_layout)


@gluon.jit
def attend_with_terms(q, rings, keys, places, n_visible, n_whole, sums, last, terms, config):
    """`attend` with the terms of a head."""
    KEYS: gl.constexpr = keys.BLOCK_SIZE
    BLOCK_N: gl.constexpr = config.BLOCK_N
    n_tiles = n_visible * KEYS // BLOCK_N
    n_whole = n_whole * KEYS // BLOCK_N
    if n_tiles > 0:
        if config.OVERLAP == "intra_warpgroup":
            sums, last = terms_overlapped(q, rings, keys, places, n_tiles, n_whole, sums, last, terms, config)
        else:
            gl.static_assert(config.OVERLAP == "none")
            sums, last = terms_in_turn(q, rings, keys, places, n_tiles, n_whole, sums, last, terms, config)
    return sums, pass_over(rings, keys, places, n_tiles, last, BLOCK_N)


@gluon.jit
def terms_in_turn(q, rings, keys, places, n_tiles, n_whole, sums, last, terms, config):
    """Overlap "none"."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, config.acc_layout, 2)
    dtype: gl.constexpr = rings.v.tiles.dtype
    tile = terms_at(keys, 0, terms, config.BLOCK_N)
    q_tile = kept_tile(q.tiles, q.slot)
    for t in range(n_tiles):
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        s = scores(q_tile, rings.k.consumer_wait(place), config.BLOCK_N, config.s_layout)
        tile_next = terms_at(keys, gl.minimum(t + 1, n_tiles - 1), terms, config.BLOCK_N)
        s = warpgroup_mma_wait(0, deps=[s])
        rings.k.consumer_release(place)
        p, alpha, m, l = softmax_of_tile(s, sums, q, keys, terms, tile, t >= n_whole, dtype, config)
        clear_values(rings, place, keys, terms, tile, config)
        acc = rescale_acc(sums.acc, alpha, config.acc_layout)
        p = gl.convert_layout(p, p_layout)
        acc = warpgroup_mma(p, rings.v.consumer_wait(place), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        rings.v.consumer_release(place)
        sums = Sums(acc, m, l)
        last = place
        tile = tile_next
    return sums, last


@gluon.jit
def terms_overlapped(q, rings, keys, places, n_tiles, n_whole, sums, last, terms, config):
    """Overlap "intra_warpgroup"."""
    p_layout: gl.constexpr = gl.DotOperandLayout(0, config.acc_layout, 2)
    dtype: gl.constexpr = rings.v.tiles.dtype
    STAGES: gl.constexpr = rings.v.tiles.shape[0]
    tile = terms_at(keys, 0, terms, config.BLOCK_N)
    t = 0
    while t < n_tiles:  # once; more often where the next tile of two rows is too far ahead in the ring
        place = places.of_tile(t)
        if places.SHARED:
            rings.k.wait_past(last, place)
        s = scores(kept_tile(q.tiles, q.slot), rings.k.consumer_wait(place), config.BLOCK_N, config.s_layout)
        s = warpgroup_mma_wait(0, deps=[s])
        rings.k.consumer_release(place)
        q_tile = kept_tile(q.tiles, q.slot)
        while (t + 1 < n_tiles) & (places.of_tile(t + 1) - place <= STAGES):
            clear_values(rings, place, keys, terms, tile, config)
            place_next = places.of_tile(t + 1)
            s_next = scores(q_tile, rings.k.consumer_wait(place_next), config.BLOCK_N, config.s_layout)
            p, alpha, m, l = softmax_of_tile(s, sums, q, keys, terms, tile, t >= n_whole, dtype, config)
            tile = terms_at(keys, t + 1, terms, config.BLOCK_N)
            p = gl.convert_layout(p, p_layout)
            acc = rescale_acc(sums.acc, alpha, config.acc_layout)
            acc = warpgroup_mma(p, rings.v.consumer_wait(place), acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s_next])
            rings.k.consumer_release(place_next)
            acc = warpgroup_mma_wait(0, deps=[acc])
            rings.v.consumer_release(place)
            sums = Sums(acc, m, l)
            place = place_next
            t += 1
        clear_values(rings, place, keys, terms, tile, config)
        tile_next = terms_at(keys, gl.minimum(t + 1, n_tiles - 1), terms, config.BLOCK_N)
        p, alpha, m, l = softmax_of_tile(s, sums, q, keys, terms, tile, t >= n_whole, dtype, config)
        acc = rescale_acc(sums.acc, alpha, config.acc_layout)
        p = gl.convert_layout(p, p_layout)
        acc = warpgroup_mma(p, rings.v.consumer_wait(place), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        rings.v.consumer_release(place)
        sums = Sums(acc, m, l)
        last = place
        tile = tile_next
        t += 1
    return sums, last
