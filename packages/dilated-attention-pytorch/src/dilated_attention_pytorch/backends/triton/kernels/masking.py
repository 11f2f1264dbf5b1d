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
def gathered_keys(
    Indices, lo, hi, t, head, RATE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Entry, key and validity of every lane of tile t, which gathers the kept keys of list entries."""
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    lanes = t * BLOCK_N + tl.arange(0, BLOCK_N)
    entry = lo + lanes // KEYS
    inside = entry < hi
    col = tl.load(Indices + entry, mask=inside, other=0)
    return entry, col * BLOCK_SIZE + head % RATE + (lanes % KEYS) * RATE, inside


@triton.jit
def not_padded(Padding, i_batch, stride_pb, stride_ps, key, inside):
    """The lanes of `inside` whose key is not padding."""
    padded = tl.load(
        Padding + i_batch.to(tl.int64) * stride_pb + key.to(tl.int64) * stride_ps, mask=inside, other=1
    )
    return inside & (padded == 0)


@triton.jit
def dropout_keep(Seed, key, query, batch_head, threshold, M: tl.constexpr, N: tl.constexpr):
    """Bool (M, N): the weights that dropout keeps; `key` and `query` broadcast to (M, N). See backends/dropout.py."""
    zero = tl.zeros([M, N], tl.uint32)
    bits, _, _, _ = tl.philox(
        tl.load(Seed),
        zero + key.to(tl.uint32),
        zero + query.to(tl.uint32),
        zero + batch_head.to(tl.uint32),
        zero,
    )
    return bits.to(tl.int64) >= threshold
