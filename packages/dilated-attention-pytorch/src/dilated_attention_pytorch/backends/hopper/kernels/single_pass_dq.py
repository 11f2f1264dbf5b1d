"""What runs before and after the single pass of the backward (backward_single_pass.py), for a chunk of 64 queries of a head.

begin_kernel    lse and -delta as the columns read them (lse_delta.py), zeros for the sums of dq, and their scales
finish_kernel   dq from its sums, which stand in the order in which the threads of the single pass hold them

The sums are float32, with None for Scales and Maxima, or int32 with a scale for every query (fixed_point.py). Done is None
unless programs take turns (turns.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fixed_point import scales_of
from .lse_delta import CHUNK
from .softmax import LOG2E

NUMBERS = [
    "stride_lb", "stride_lh", "stride_ls", "has_grad_lse", "n_chunks", "num_heads", "heads_per_kv", "q_len",
]  # fmt: skip


@triton.jit(do_not_specialize=NUMBERS)
def begin_kernel(
    Out, GradOut, Lse, GradLse, Stats, Sums, Scales, Maxima, Done, stride_ob, stride_os, stride_oh, stride_gb, stride_gs, stride_gh,
    stride_lb, stride_lh, stride_ls, has_grad_lse, n_chunks, num_heads, heads_per_kv, q_len, D: tl.constexpr,
):  # fmt: skip
    """A program for every chunk of every head. The first query is at the start of the first chunk."""
    place = tl.program_id(0).to(tl.int64)
    batch_head, chunk = place // n_chunks, (place % n_chunks).to(tl.int32)
    i_batch, head = batch_head // num_heads, batch_head % num_heads
    m = tl.arange(0, CHUNK)
    d = tl.arange(0, D)
    query = chunk * CHUNK + m
    inside = query < q_len
    rows = query.to(tl.int64)
    of_out = Out + i_batch * stride_ob + head * stride_oh + rows[:, None] * stride_os
    of_grad_out = GradOut + i_batch * stride_gb + head * stride_gh + rows[:, None] * stride_gs
    out = tl.load(of_out + d[None, :], mask=inside[:, None], other=0.0)
    grad_out = tl.load(of_grad_out + d[None, :], mask=inside[:, None], other=0.0)
    lse = tl.load(Lse + batch_head * q_len + rows, mask=inside, other=-float("inf"))
    of_grad_lse = GradLse + i_batch * stride_lb + head * stride_lh + rows * stride_ls
    grad_lse = tl.zeros([CHUNK], tl.float32)
    if has_grad_lse != 0:
        grad_lse = tl.load(of_grad_lse, mask=inside, other=0.0).to(tl.float32)
    sums = Sums + place * (CHUNK * D) + tl.arange(0, CHUNK * D)
    tl.store(sums, tl.zeros([CHUNK * D], Sums.dtype.element_ty))
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1) - grad_lse
    none = lse == -float("inf")
    stats = Stats + place * (2 * CHUNK) + m
    tl.store(stats, tl.where(none, float("inf"), lse * LOG2E))
    tl.store(stats + CHUNK, tl.where(none, 0.0, -delta))
    if Done is not None:
        tl.store(Done + place, 0)
    if Scales is not None:
        maxima = Maxima + batch_head // heads_per_kv * 2
        k_max = tl.load(maxima).to(tl.float32, bitcast=True)
        v_max = tl.load(maxima + 1).to(tl.float32, bitcast=True)
        scales = scales_of(grad_out.to(tl.float32), delta, lse, k_max, v_max)
        tl.store(Scales + place * CHUNK + m, scales)


@triton.jit(do_not_specialize=["n_chunks", "num_heads", "q_len"])
def finish_kernel(
    Sums, Scales, Dq, stride_qb, stride_qs, stride_qh, n_chunks, num_heads, q_len, softmax_scale, D: tl.constexpr
):  # fmt: skip
    """A program for every chunk of every head."""
    place = tl.program_id(0).to(tl.int64)
    batch_head, chunk = place // n_chunks, (place % n_chunks).to(tl.int32)
    i_batch, head = batch_head // num_heads, batch_head % num_heads
    x = tl.load(Sums + place * (CHUNK * D) + tl.arange(0, CHUNK * D)) * softmax_scale
    # (column / 8, warp, row in 8, column / 2 in 4, row / 8 in 2, column in 2), as `fragments` leaves them
    x = x.reshape([D // 8, 4, 8, 4, 2, 2])
    if Scales is not None:
        scales = tl.load(Scales + place * CHUNK + tl.arange(0, CHUNK))
        inverse = tl.div_rn(1.0, scales).reshape([4, 2, 8]).permute([0, 2, 1])
        x *= inverse.reshape([1, 4, 8, 1, 2, 1])
    x = x.to(Dq.dtype.element_ty).permute([1, 4, 2, 0, 3, 5]).reshape([CHUNK, D])
    query = chunk * CHUNK + tl.arange(0, CHUNK)
    d = tl.arange(0, D)
    of_dq = Dq + i_batch * stride_qb + head * stride_qh + query.to(tl.int64)[:, None] * stride_qs
    tl.store(of_dq + d[None, :], x, mask=(query < q_len)[:, None])
