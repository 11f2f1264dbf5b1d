"""The Triton kernel that makes the table of the sequences of a call (sequences.py); sequence_launch.py launches it."""

from __future__ import annotations

import triton
import triton.language as tl

POINTERS = ("Table", "CuSeqlensQ", "CuSeqlensK", "QOffset", "KvLengths", "KvStarts")
NUMBERS = (
    "stride_cu_q", "stride_cu_k", "stride_offset", "stride_lengths", "stride_starts", "n_sequences", "q_tokens", "kv_tokens",
    "max_q_len", "max_kv_len", "first", "q_end", "kv_end",
)  # fmt: skip


@triton.jit
def as_int32(x):
    """Integers of any type as int32; those beyond it become its ends, instead of wrapping around."""
    return tl.minimum(tl.maximum(x.to(tl.int64), -2147483648), 2147483647).to(tl.int32)


@triton.jit
def clamped(x, most):
    """0 to `most`."""
    return tl.minimum(tl.maximum(x, 0), most)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=POINTERS)
def table_kernel(
    Table, CuSeqlensQ, CuSeqlensK, QOffset, KvLengths, KvStarts,
    stride_cu_q, stride_cu_k, stride_offset, stride_lengths, stride_starts, n_sequences, q_tokens, kv_tokens,
    max_q_len, max_kv_len, first, q_end, kv_end, POSITION: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for BLOCK sequences; see `TablePlan` in sequence_plans.py. What is not given is None."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = s < n_sequences
    zero = s * 0
    if CuSeqlensQ is None:
        q_start, q_len = zero, zero + max_q_len
    else:
        begin = CuSeqlensQ + s.to(tl.int64) * stride_cu_q
        q_start = clamped(as_int32(tl.load(begin, mask=is_row, other=0)), q_tokens)
        end = clamped(as_int32(tl.load(begin + stride_cu_q, mask=is_row, other=0)), q_tokens)
        q_len = clamped(end - q_start, max_q_len)
    if CuSeqlensK is None:
        kv_start, end = zero, zero + kv_tokens
        if KvLengths is not None:
            length = tl.load(KvLengths + s.to(tl.int64) * stride_lengths, mask=is_row, other=0)
            end = clamped(as_int32(length), kv_tokens)
        if KvStarts is not None:
            start = tl.load(KvStarts + s.to(tl.int64) * stride_starts, mask=is_row, other=0)
            kv_start = clamped(as_int32(start), end)
        kv_len = end - kv_start
    else:
        begin = CuSeqlensK + s.to(tl.int64) * stride_cu_k
        kv_start = clamped(as_int32(tl.load(begin, mask=is_row, other=0)), kv_tokens)
        end = clamped(as_int32(tl.load(begin + stride_cu_k, mask=is_row, other=0)), kv_tokens)
        kv_len = clamped(end - kv_start, max_kv_len)
    if POSITION == "given":
        position = as_int32(tl.load(QOffset + s.to(tl.int64) * stride_offset, mask=is_row, other=0))
    elif POSITION == "last":
        position = kv_len - q_len
    elif POSITION == "keys":
        position = first - kv_start
    else:
        position = zero + first
    if CUT:
        q_len = tl.minimum(q_len, tl.maximum(q_end - position, 0))
        kv_len = tl.minimum(kv_len, kv_end)
    row = Table + s.to(tl.int64) * 5
    tl.store(row, q_start, mask=is_row)
    tl.store(row + 1, q_len, mask=is_row)
    tl.store(row + 2, kv_start, mask=is_row)
    tl.store(row + 3, kv_len, mask=is_row)
    tl.store(row + 4, position, mask=is_row)
