"""What a call asks of its scores beyond the products: masks inside blocks, padding, a bias per block, softcap, alibi;
and of its weights: dropout.

Scores are in units of log2. A bias is one number per tile, so it moves the maximum of the softmax instead of the scores.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .dropout import Dropout, load_dropout
from .layouts import word_layout
from .score_terms import ScoreScale, in_log2, score_scale
from .softmax import INFINITY, LOG2E
from .tile_masks import (
    hide,
    words_of_columns,
    words_of_mask,
    words_to_edge,
)


@aggregate
class ScoreArguments:
    """Arguments of a kernel; None where a call has not got them.

    mask_ids: of every entry, -1 for a whole block. masks: their words. padding: words of the keys of every sequence.
    block_ids: of every entry, its place in the bias. slopes: of every query head. seed, threshold: of dropout.
    """

    softmax_scale: gl.tensor | gl.constexpr
    mask_ids: gl.tensor | gl.constexpr
    masks: gl.tensor | gl.constexpr
    padding: gl.tensor | gl.constexpr
    stride_pb: gl.tensor | gl.constexpr
    block_ids: gl.tensor | gl.constexpr
    bias: gl.tensor | gl.constexpr
    stride_bb: gl.tensor | gl.constexpr
    stride_bh: gl.tensor | gl.constexpr
    stride_be: gl.tensor | gl.constexpr
    softcap: gl.tensor | gl.constexpr
    slopes: gl.tensor | gl.constexpr
    seed: gl.tensor | gl.constexpr
    threshold: gl.tensor | gl.constexpr


@aggregate
class HeadTerms:
    """The same for one head of one sequence; padding, bias, slope_log2 and dropout are its own."""

    mask_ids: gl.tensor | gl.constexpr
    masks: gl.tensor | gl.constexpr
    padding: gl.tensor | gl.constexpr
    block_ids: gl.tensor | gl.constexpr
    bias: gl.tensor | gl.constexpr
    stride_be: gl.tensor | gl.constexpr
    slope_log2: gl.tensor | gl.constexpr
    scale: ScoreScale
    dropout: Dropout | gl.constexpr


@aggregate
class TileTerms:
    """The same for one tile of keys: the position of its first key, its mask and the first word there, padding, bias.

    has_edge: the keys end in it, or not all queries see all of its keys. Where a call has no padding all bits are set.
    """

    key0: gl.tensor
    has_edge: gl.tensor
    first_word: gl.tensor
    mask_id: gl.tensor
    padding: gl.tensor
    bias_log2: gl.tensor


@gluon.jit
def terms_of_head(arguments, i_sequence, head, num_heads):
    """The terms of a query head of a sequence."""
    padding = arguments.padding
    if arguments.padding is not None:
        padding = arguments.padding + i_sequence.to(gl.int64) * arguments.stride_pb
    bias = arguments.bias
    if arguments.bias is not None:
        bias = (
            arguments.bias
            + i_sequence.to(gl.int64) * arguments.stride_bb
            + head.to(gl.int64) * arguments.stride_bh
        )
    slope_log2 = arguments.slopes
    if arguments.slopes is not None:
        slope_log2 = gl.load(arguments.slopes + head) * LOG2E
    scale = score_scale(arguments.softmax_scale, arguments.softcap)
    dropout = None
    if arguments.seed is not None:
        dropout = load_dropout(arguments.seed, arguments.threshold, i_sequence * num_heads + head)
    return HeadTerms(
        arguments.mask_ids, arguments.masks, padding, arguments.block_ids, bias, arguments.stride_be, slope_log2,
        scale, dropout,
    )  # fmt: skip


@gluon.jit
def terms_of_tile(terms, indices, entry, first, has_edge, BLOCK_SIZE: gl.constexpr, KEYS: gl.constexpr):
    """The terms of a tile: KEYS keys of the block of an entry, from its key `first` on. To be loaded a tile early."""
    WORDS: gl.constexpr = KEYS // 32
    LAYOUT: gl.constexpr = word_layout(WORDS)
    key0 = gl.load(indices + entry) * BLOCK_SIZE + first
    mask_id = gl.to_tensor(-1)
    if terms.mask_ids is not None:
        mask_id = gl.load(terms.mask_ids + entry)
    padding = gl.full([WORDS], -1, gl.int32, layout=gl.SliceLayout(0, LAYOUT))
    if terms.padding is not None:
        padding = words_of_columns(terms.padding + key0 // 32, WORDS)
    bias_log2 = gl.to_tensor(0.0)
    if terms.bias is not None:
        block_id = gl.load(terms.block_ids + entry).to(gl.int64)
        bias_log2 = in_log2(gl.load(terms.bias + block_id * terms.stride_be))
    return TileTerms(key0, has_edge, first // 32, mask_id, padding, bias_log2)


@gluon.jit
def finite_bias(tile):
    """The bias of a tile, 0 where it hides the tile."""
    return gl.where(tile.bias_log2 == -INFINITY, 0.0, tile.bias_log2)


@gluon.jit
def is_padded(tile):
    """Whether a key of a tile is padding."""
    return gl.min(gl.where(tile.padding == -1, 1, 0), 0) == 0


@gluon.jit
def hide_pairs(
    s, terms, tile, query0, row0, kv_len, BLOCK_SIZE: gl.constexpr, IS_CAUSAL: gl.constexpr, layout: gl.constexpr
):  # fmt: skip
    """Scores with -infinity where a pair does not count, in a branch: most tiles hide none.

    query0: the position of the first query. row0: its place in its block.
    """
    WORDS: gl.constexpr = s.shape[1] // 32
    if tile.has_edge | (tile.mask_id >= 0) | is_padded(tile) | (tile.bias_log2 == -INFINITY):
        words = words_to_edge(kv_len, query0, tile.key0, IS_CAUSAL, WORDS)
        if terms.mask_ids is not None:
            words = words & words_of_mask(terms.masks, tile.mask_id, row0, tile.first_word, BLOCK_SIZE, WORDS)
        if terms.padding is not None:
            words = words & tile.padding[None, :]
        if terms.bias is not None:
            words = words & gl.where(tile.bias_log2 == -INFINITY, 0, -1)
        s = hide(s, words, layout)
    return s
