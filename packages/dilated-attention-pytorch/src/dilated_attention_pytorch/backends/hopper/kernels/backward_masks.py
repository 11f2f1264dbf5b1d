"""What the backward hides of a tile of scores: in plain calls a `BlockMask`, in others words of bits (tile_masks.py).

Rows are kept tokens and columns streamed ones: queries and keys in the dq pass, keys and queries in the dkdv pass. A streamed
token that does not exist, or is padding, is cleared in shared memory before its tile is read: memory may hold anything there.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate, thread_barrier
from .clear_rows import keep_listed_rows, keep_rows
from .tile_masks import all_words, below, bits_of, rows_of_tile


@aggregate
class PairMasks:
    """Masks inside blocks and padding of a call; None for what it has not.

    ids, table: of the entries of the lists, and the masks by rows of what is kept (tile_masks.py).
    padding: a bit for every key of a sequence, in rows of stride_p words.
    """

    ids: gl.tensor | gl.constexpr
    table: gl.tensor | gl.constexpr
    padding: gl.tensor | gl.constexpr
    stride_p: gl.tensor | gl.constexpr


@aggregate
class TileMask:
    """What is visible of a tile; `kept` and `streamed` are the positions of its first row and column.

    end: the first streamed position that is none, in the dq pass.
    mask_id, words: of the mask inside the block, -1 where it has none.
    padding: the words of the columns, in the dq pass.
    """

    kept: gl.tensor
    streamed: gl.tensor
    end: gl.tensor | gl.constexpr
    mask_id: gl.tensor | gl.constexpr
    words: gl.tensor | gl.constexpr
    padding: gl.tensor | gl.constexpr
    DKDV: gl.constexpr
    IS_CAUSAL: gl.constexpr

    @gluon.jit
    def is_partial(self, COLUMNS: gl.constexpr):
        """Whether anything may be hidden."""
        is_partial = False
        if self.DKDV:
            if self.IS_CAUSAL:
                is_partial = self.kept + 63 > self.streamed
        else:
            limit = self.end
            if self.IS_CAUSAL:
                limit = gl.minimum(limit, self.kept + 1)
            is_partial = self.streamed + COLUMNS > limit
        if self.mask_id is not None:
            is_partial = is_partial | (self.mask_id >= 0)
        if self.padding is not None:
            is_partial = is_partial | not_all_set(self.padding)
        return is_partial

    @gluon.jit
    def visible(self, WORDS: gl.constexpr):
        """The words of what is visible. In the dkdv pass keys that do not count are not hidden."""
        if self.DKDV:
            # all bits, or those of the queries from the key on
            words = ~below(self.streamed, self.streamed, WORDS)
            if self.IS_CAUSAL:
                words = ~below(self.kept + rows_of_tile(WORDS), self.streamed, WORDS)
        else:
            words = below(self.end, self.streamed, WORDS)
            if self.IS_CAUSAL:
                last = gl.minimum(self.kept + 1 + rows_of_tile(WORDS), self.end)
                words = below(last, self.streamed, WORDS)
        if self.words is not None:
            words = words & self.words
        if self.padding is not None:
            words = words & self.padding[None, :]
        return words


@aggregate
class BlockMask:
    """What is visible in p of a part of a block; `kept` and `streamed` are the positions of its first row and column."""

    kept: gl.tensor
    streamed: gl.tensor
    kv_len: gl.tensor
    DKDV: gl.constexpr
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key.

        The dkdv pass need not mask keys past the end: their dk and dv are not stored.
        """
        TILE: gl.constexpr = p.shape[1]
        if self.DKDV:
            if self.IS_CAUSAL:
                last_key = self.kept + 63
                if last_key > self.streamed:
                    key = self.kept + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                    query = self.streamed + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                    p = gl.where(key[:, None] <= query[None, :], p, 0.0)
        else:
            if self.IS_CAUSAL or not self.EVEN_KV:
                limit = self.kv_len
                if self.IS_CAUSAL:
                    limit = gl.minimum(self.kv_len, self.kept + 1)
                if self.streamed + TILE > limit:
                    key = self.streamed + gl.arange(0, TILE, layout=gl.SliceLayout(0, layout))
                    visible = (key < self.kv_len)[None, :]
                    if self.IS_CAUSAL:
                        query = self.kept + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
                        visible = visible & (key[None, :] <= query[:, None])
                    p = gl.where(visible, p, 0.0)
        return p


@gluon.jit
def visible_keys(p, key, query, kv_len, IS_CAUSAL: gl.constexpr, layout: gl.constexpr):
    """p (keys, queries), 0 where a query may not see the key or there is no key; the positions are those of p[0, 0]."""
    keys = key + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    mask = (keys < kv_len)[:, None]
    if IS_CAUSAL:
        queries = query + gl.arange(0, p.shape[1], layout=gl.SliceLayout(0, layout))
        mask = mask & (keys[:, None] <= queries[None, :])
    return gl.where(mask, p, 0.0)


@aggregate
class KeyMask:
    """What is visible in p of a step of the single pass; `key` and `query` are the positions of its first row and column."""

    key: gl.tensor
    query: gl.tensor
    kv_len: gl.tensor
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key or there is no key."""
        if self.IS_CAUSAL or not self.EVEN_KV:
            limit = self.kv_len
            if self.IS_CAUSAL:
                limit = gl.minimum(self.kv_len, self.query + 1)
            if self.key + 64 > limit:
                p = visible_keys(p, self.key, self.query, self.kv_len, self.IS_CAUSAL, layout)
        return p


@aggregate
class KeyMaskWithoutBranch:
    """`KeyMask` that is always applied, where ptxas lacks the registers for a branch and serialises products (C7512)."""

    key: gl.tensor
    query: gl.tensor
    kv_len: gl.tensor
    IS_CAUSAL: gl.constexpr
    EVEN_KV: gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key or there is no key."""
        if self.IS_CAUSAL or not self.EVEN_KV:
            p = visible_keys(p, self.key, self.query, self.kv_len, self.IS_CAUSAL, layout)
        return p


@aggregate
class WordMask:
    """What is visible of a tile, made before its products: in a branch behind them ptxas keeps more in registers.

    is_partial: whether anything is hidden, or None where there are no registers for that branch either.
    """

    words: gl.tensor
    is_partial: gl.tensor | gl.constexpr

    @gluon.jit
    def apply_mask(self, p, layout: gl.constexpr):
        """p, 0 where a query may not see the key."""
        if self.is_partial is None:
            return gl.where(bits_of(self.words, p.shape[1], layout), p, 0.0)
        else:
            if self.is_partial:
                p = gl.where(bits_of(self.words, p.shape[1], layout), p, 0.0)
            return p


@gluon.jit
def ready_words(mask, COLUMNS: gl.constexpr):
    """The words of a `TileMask`; all bits where nothing is hidden."""
    words = all_words(COLUMNS // 32)
    is_partial = mask.is_partial(COLUMNS)
    if is_partial:
        words = mask.visible(COLUMNS // 32)
    if mask.DKDV:
        return WordMask(words, None)
    else:
        return WordMask(words, is_partial)


@gluon.jit
def not_all_set(words):
    """Whether some bit of words is 0."""
    return gl.min(gl.where(words == -1, 1, 0), 0) == 0


@gluon.jit
def keep_streamed(streams, place, begin, end, TILES: gl.constexpr):
    """Clear what is before row `begin` and from row `end` on in TILES tiles, of which no product has been started."""
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    TILE: gl.constexpr = streams.qk.tiles.shape[1]
    if (begin > 0) | (end < TILES * TILE):
        for i in gl.static_range(TILES):
            streams.qk.wait_full(place + i)
            keep_rows(
                streams.qk.tiles, streams.qk.tails, (place + i) % STAGES, begin - i * TILE, end - i * TILE
            )
            streams.gv.wait_full(place + i)
            keep_rows(
                streams.gv.tiles, streams.gv.tails, (place + i) % STAGES, begin - i * TILE, end - i * TILE
            )
        thread_barrier()


@gluon.jit
def keep_streamed_keys(streams, place, words):
    """Clear the keys whose bits are 0 in a tile of which no product has been started."""
    STAGES: gl.constexpr = streams.qk.tiles.shape[0]
    if not_all_set(words):
        streams.qk.wait_full(place)
        keep_listed_rows(streams.qk.tiles, streams.qk.tails, place % STAGES, words)
        streams.gv.wait_full(place)
        keep_listed_rows(streams.gv.tiles, streams.gv.tails, place % STAGES, words)
        thread_barrier()


@gluon.jit
def keep_queries(kept, slot, begin, end):
    """Clear the rows before `begin` and from `end` on of the tiles that a warpgroup keeps."""
    if (begin > 0) | (end < 64):
        keep_rows(kept.qk, kept.qk_tails, slot, begin, end)
        keep_rows(kept.gv, kept.gv_tails, slot, begin, end)
        thread_barrier()


@gluon.jit
def keep_counted(x, words, layout: gl.constexpr):
    """Sums (64, D) of which the rows of padded keys are set to 0."""
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    keep = ((gl.load(words + row // 32) >> (row % 32)) & 1) != 0
    return gl.where(keep[:, None], x, 0.0)
