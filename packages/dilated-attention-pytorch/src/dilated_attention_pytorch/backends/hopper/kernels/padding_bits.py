"""The key padding mask as bits, by the positions of the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .sequences import TABLE_COLUMNS


@triton.jit(do_not_specialize=["kv_len", "n_words", "stride_mb", "stride_ms"])
def padding_bits_kernel(Mask, Table, Bits, kv_len, n_words, stride_mb, stride_ms, WORDS: tl.constexpr):
    """Bits: int32 (batch, n_words); bit j % 32 of word j // 32 is set where the key at position j exists and is no padding.

    Mask: int8 (batch, kv_len), not 0 for padding. Table, None where all keys are in every sequence: one sequence for each
    batch element. A program makes WORDS words.
    """
    n_parts = tl.cdiv(n_words, WORDS)
    i_batch, part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    first, end = i_batch * 0, kv_len
    if Table is not None:
        row = Table + i_batch * TABLE_COLUMNS
        first, end = tl.load(row + 2), tl.load(row + 3)
    word = part * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)[None, :]
    key = word[:, None] * 32 + bit
    places = Mask + i_batch.to(tl.int64) * stride_mb + (first + key).to(tl.int64) * stride_ms
    counts = tl.load(places, mask=key < end, other=1) == 0
    # different bits: their sum is their union
    bits = tl.sum(counts.to(tl.uint32) << bit.to(tl.uint32), 1)
    tl.store(
        Bits + i_batch.to(tl.int64) * n_words + word, bits.to(tl.int32, bitcast=True), mask=word < n_words
    )
