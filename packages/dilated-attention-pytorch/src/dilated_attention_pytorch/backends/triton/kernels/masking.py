"""Masks, shared by the forward and backward kernels: which keys exist, are visible or padding, and which weights dropout keeps."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
COUNT_LANES = tl.constexpr(128)


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
def whole_and_visible(blocks, position0, kv_valid, sizes, options):
    """How many entries of a row a tile of queries sees whole, and how many it sees at all; the others come later."""
    n_whole, n_visible = blocks.hi - blocks.lo, blocks.hi - blocks.lo
    if options.HAS_EDGE:
        past_end = tl.cdiv(kv_valid, sizes.BLOCK_SIZE)
        whole_end = kv_valid // sizes.BLOCK_SIZE
        if options.IS_CAUSAL:
            past_end = tl.minimum(past_end, (position0 + sizes.BLOCK_M - 1) // sizes.BLOCK_SIZE + 1)
            whole_end = tl.minimum(whole_end, (position0 + 1) // sizes.BLOCK_SIZE)
        n_visible = count_below(blocks.Indices, blocks.lo, blocks.hi, past_end)
        n_whole = 0 if options.HAS_PADDING else count_below(blocks.Indices, blocks.lo, blocks.hi, whole_end)
    return n_whole, n_visible


@triton.jit
def gathered_tokens(blocks, t, residue, RATE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Entry, token and validity of every lane of tile t, which gathers from each block the tokens of a residue."""
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    lanes = t * BLOCK_N + tl.arange(0, BLOCK_N)
    entry = blocks.lo + lanes // KEYS
    inside = entry < blocks.hi
    col = tl.load(blocks.Indices + entry, mask=inside, other=0)
    return entry, col * BLOCK_SIZE + residue % RATE + (lanes % KEYS) * RATE, inside


@triton.jit
def not_padded(padding, key, inside):
    """The lanes of `inside` whose key is not padding."""
    padded = tl.load(
        padding.mask + padding.i_batch.to(tl.int64) * padding.stride_pb + key.to(tl.int64) * padding.stride_ps,
        mask=inside, other=1,
    )  # fmt: skip
    return inside & (padded == 0)


@triton.jit
def block_bias(bias_of, Entries, entry):
    """The bias of one entry."""
    return tl.load(bias_of.base + tl.load(Entries + entry).to(tl.int64) * bias_of.stride_be).to(tl.float32)


@triton.jit
def block_biases(bias_of, Entries, entry, inside):
    """The biases of the entry of every lane, (1, lanes)."""
    place = tl.load(Entries + entry, mask=inside, other=0).to(tl.int64)
    return tl.load(bias_of.base + place * bias_of.stride_be, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def dropout_keep(dropout, key, query, M: tl.constexpr, N: tl.constexpr):
    """Bool (M, N): the weights that dropout keeps; `key` and `query` broadcast to (M, N). See backends/dropout.py."""
    zero = tl.zeros([M, N], tl.uint32)
    bits, _, _, _ = tl.philox(
        tl.load(dropout.Seed),
        zero + key.to(tl.uint32),
        zero + query.to(tl.uint32),
        zero + dropout.batch_head.to(tl.uint32),
        zero,
    )
    return bits.to(tl.int64) >= dropout.threshold
