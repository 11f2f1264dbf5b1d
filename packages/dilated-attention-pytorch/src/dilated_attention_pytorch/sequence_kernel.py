"""The Triton kernel that makes the table of the sequences of a call (sequences.py); sequence_launch.py launches it."""

from __future__ import annotations

import triton
import triton.language as tl

POINTERS = ("Table", "Groups", "CuSeqlensQ", "CuSeqlensK", "QOffset", "KvLengths", "KvStarts")
NUMBERS = (
    "stride_cu_q", "stride_cu_k", "stride_offset", "stride_lengths", "stride_starts", "n_sequences", "q_tokens", "kv_tokens",
    "max_q_len", "max_kv_len", "first", "q_end", "kv_end", "first_position",
)  # fmt: skip
GROUP = tl.constexpr(128)  # positions


@triton.jit
def as_int32(x):
    """Integers of any type as int32; those beyond it become its ends, instead of wrapping around."""
    return tl.minimum(tl.maximum(x.to(tl.int64), -2147483648), 2147483647).to(tl.int32)


@triton.jit
def clamped(x, most):
    """0 to `most`."""
    return tl.minimum(tl.maximum(x, 0), most)


@triton.jit
def num_groups(place, n_tokens):
    """Groups of positions that hold a token, of so many from `place` in a group on."""
    return tl.where(n_tokens > 0, (place + n_tokens + GROUP - 1) // GROUP, 0)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=POINTERS)
def table_kernel(
    Table, Groups, CuSeqlensQ, CuSeqlensK, QOffset, KvLengths, KvStarts,
    stride_cu_q, stride_cu_k, stride_offset, stride_lengths, stride_starts, n_sequences, q_tokens, kv_tokens,
    max_q_len, max_kv_len, first, q_end, kv_end, first_position, POSITION: tl.constexpr, CUT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, BLOCK sequences at a time; see `TablePlan` in sequence_plans.py. What is not given is None."""
    n_q_groups = 0
    n_kv_groups = 0
    tl.store(Groups, 0)
    tl.store(Groups + n_sequences + 1, 0)
    for block in range(0, n_sequences, BLOCK):
        s = block + tl.arange(0, BLOCK)
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
        # a place is not negative where the position is
        of_q = tl.where(is_row, num_groups((position - first_position) & (GROUP - 1), q_len), 0)
        of_kv = tl.where(is_row, num_groups(zero, kv_len), 0)
        tl.store(Groups + 1 + s, n_q_groups + tl.cumsum(of_q, 0), mask=is_row)
        tl.store(Groups + n_sequences + 2 + s, n_kv_groups + tl.cumsum(of_kv, 0), mask=is_row)
        n_q_groups += tl.sum(of_q, 0)
        n_kv_groups += tl.sum(of_kv, 0)
