"""Masks: which keys exist, are visible or padding, what masks inside blocks hide, and which weights dropout keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from ...dropout import ROUNDS as PHILOX_ROUNDS

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
COUNT_LANES = tl.constexpr(128)
ROUNDS = tl.constexpr(PHILOX_ROUNDS)


@triton.jit
def valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS: tl.constexpr):
    """The number of keys of a batch entry that are no padding at the end."""
    if HAS_KV_LENGTHS:
        return tl.minimum(kv_len, tl.load(KvLengths + i_batch))
    else:
        return kv_len


@triton.jit
def count_below(Indices, lo, hi, bound):
    """How many entries of a sorted list are below `bound`: they are its first ones."""
    n = 0
    for e in range(lo, hi, COUNT_LANES):
        lanes = e + tl.arange(0, COUNT_LANES)
        index = tl.load(Indices + lanes, mask=lanes < hi, other=2147483647)
        n += tl.sum((index < bound).to(tl.int32))
    return n


@triton.jit
def past_visible(position0, kv_valid, sizes, IS_CAUSAL: tl.constexpr):
    """The first column of which a tile of queries sees nothing."""
    past_end = tl.cdiv(kv_valid, sizes.BLOCK_SIZE)
    if IS_CAUSAL:
        past_end = tl.minimum(past_end, (position0 + sizes.BLOCK_M - 1) // sizes.BLOCK_SIZE + 1)
    return past_end


@triton.jit
def whole_and_visible(blocks, position0, keys, sizes, options):
    """How many entries without a mask a tile of queries sees whole, and how many it sees at all; the others come later."""
    lo, hi = blocks.lo, blocks.split if blocks.masks is not None else blocks.hi
    n_whole, n_visible = hi - lo, hi - lo
    if keys.has_edge != 0:
        past_end = tl.cdiv(keys.kv_valid, sizes.BLOCK_SIZE)
        whole_end = keys.kv_valid // sizes.BLOCK_SIZE
        if options.IS_CAUSAL:
            past_end = tl.minimum(past_end, (position0 + sizes.BLOCK_M - 1) // sizes.BLOCK_SIZE + 1)
            whole_end = tl.minimum(whole_end, (position0 + 1) // sizes.BLOCK_SIZE)
        n_visible = count_below(blocks.Indices, lo, hi, past_end)
        n_whole = 0 if options.HAS_PADDING else count_below(blocks.Indices, lo, hi, whole_end)
    return n_whole, n_visible


@triton.jit
def edge_end(blocks, n_visible, position0, kv_valid, sizes, options):
    """`n_visible`, and the entries with a mask that are visible."""
    if blocks.masks is not None:
        past_end = past_visible(position0, kv_valid, sizes, options.IS_CAUSAL)
        return n_visible + count_below(blocks.Indices, blocks.split, blocks.hi, past_end)
    else:
        return n_visible


@triton.jit
def entry_of(blocks, i, n_first):
    """Visible entry i: of the first `n_first`, or of those with a mask."""
    if blocks.masks is not None:
        return tl.where(i < n_first, blocks.lo + i, blocks.split + i - n_first)
    else:
        return blocks.lo + i


@triton.jit
def gathered_tokens(
    Indices, lo, hi, t, residue, RATE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Entry, token and validity of every lane of tile t, which gathers from each block the tokens of a residue."""
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    lanes = t * BLOCK_N + tl.arange(0, BLOCK_N)
    entry = lo + lanes // KEYS
    inside = entry < hi
    col = tl.load(Indices + entry, mask=inside, other=0)
    return entry, col * BLOCK_SIZE + residue % RATE + (lanes % KEYS) * RATE, inside


@triton.jit
def allowed_in_tile(
    masks, entry, query, key0, BLOCK_SIZE: tl.constexpr, N: tl.constexpr, KEYS_FIRST: tl.constexpr
):
    """Bool (queries, N), with KEYS_FIRST (N, queries): the pairs that the mask of an entry keeps.

    `query` are the places of the queries in their block, keys are N from place key0 on.
    """
    WORDS: tl.constexpr = (BLOCK_SIZE + 31) // 32
    mask_id = tl.load(masks.Ids + entry)
    words = masks.Table + mask_id.to(tl.int64) * BLOCK_SIZE * WORDS + key0 // 32 + query * WORDS
    # Not an & with a scalar, of which the interpreter of 3.9 makes bytes.
    is_masked = tl.minimum(query, mask_id) >= 0
    lane = key0 % 32 + tl.arange(0, N) if N < 32 else tl.arange(0, N)
    lane = lane[:, None] if KEYS_FIRST else lane[None, :]
    # loaded as rows: a gather of the words of a tile would load each of them up to 32 times
    word = tl.load(words, mask=is_masked, other=-1)
    word = word[None, :] if KEYS_FIRST else word[:, None]
    for i in tl.static_range(1, N // 32):
        other = tl.load(words + i, mask=is_masked, other=-1)
        word = tl.where(lane // 32 == i, other[None, :] if KEYS_FIRST else other[:, None], word)
    return ((word >> (lane % 32)) & 1) != 0


@triton.jit
def allowed_pairs(masks, entry, query, key, inside, BLOCK_SIZE: tl.constexpr):
    """As `allowed_in_tile`, for entries, queries and keys (places in their blocks) that broadcast to the pairs `inside`."""
    WORDS: tl.constexpr = (BLOCK_SIZE + 31) // 32
    mask_id = tl.load(masks.Ids + entry, mask=inside, other=-1)
    words = masks.Table + (mask_id.to(tl.int64) * BLOCK_SIZE + query) * WORDS + key // 32
    word = tl.load(words, mask=mask_id >= 0, other=-1)
    return ((word >> (key % 32)) & 1) != 0


@triton.jit
def not_padded(padding, key, inside):
    """The lanes of `inside` whose key is not padding."""
    padded = tl.load(
        padding.mask + padding.i_batch.to(tl.int64) * padding.stride_pb + key.to(tl.int64) * padding.stride_ps,
        mask=inside, other=1,
    )  # fmt: skip
    return inside & (padded == 0)


@triton.jit
def dropout_keep(dropout, key, position, M: tl.constexpr, N: tl.constexpr):
    """Bool (M, N): the weights that dropout keeps; positions of keys and of queries that broadcast to it. See backends/dropout.py."""
    zero = tl.zeros([M, N], tl.uint32)
    word0, word1, word2, word3 = tl.philox(
        tl.load(dropout.Seed),
        zero + (key & ~9).to(tl.uint32),
        zero + (position & ~8).to(tl.uint32),
        zero + dropout.sequence_head.to(tl.uint32),
        zero,
        ROUNDS,
    )
    is_behind, is_below = (key & 8) != 0, (position & 8) != 0
    word = tl.where(is_below, tl.where(is_behind, word3, word2), tl.where(is_behind, word1, word0))
    return ((word >> (16 * (key & 1)).to(tl.uint32)) & 0xFFFF).to(tl.int32) >= dropout.threshold
