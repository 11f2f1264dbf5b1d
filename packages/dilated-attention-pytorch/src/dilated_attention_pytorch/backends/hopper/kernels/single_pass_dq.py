"""What runs before and after the single pass of the backward (backward_single_pass.py), for a chunk of 64 queries of a head.

begin_kernel    lse and -delta as the columns read them (lse_delta.py), and zeros for the sums of dq
finish_kernel   dq from its float32 sums, which stand in the order in which the threads of the single pass hold them
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
CHUNK = tl.constexpr(64)


NUMBERS = [
    "stride_lb", "stride_lh", "stride_ls", "has_grad_lse", "n_chunks", "num_heads", "q_len",
]  # fmt: skip


@triton.jit(do_not_specialize=NUMBERS)
def begin_kernel(
    Out, GradOut, Lse, GradLse, Stats, Sums, stride_ob, stride_os, stride_oh, stride_gb, stride_gs, stride_gh, stride_lb,
    stride_lh, stride_ls, has_grad_lse, n_chunks, num_heads, q_len, D: tl.constexpr,
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
    tl.store(sums, tl.zeros([CHUNK * D], tl.float32))
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1) - grad_lse
    none = lse == -float("inf")
    stats = Stats + place * (2 * CHUNK) + m
    tl.store(stats, tl.where(none, float("inf"), lse * LOG2E))
    tl.store(stats + CHUNK, tl.where(none, 0.0, -delta))


@triton.jit(do_not_specialize=["n_chunks", "num_heads", "q_len"])
def finish_kernel(
    Sums, Dq, stride_qb, stride_qs, stride_qh, n_chunks, num_heads, q_len, softmax_scale, D: tl.constexpr
):  # fmt: skip
    """A program for every chunk of every head."""
    place = tl.program_id(0).to(tl.int64)
    batch_head, chunk = place // n_chunks, (place % n_chunks).to(tl.int32)
    i_batch, head = batch_head // num_heads, batch_head % num_heads
    x = tl.load(Sums + place * (CHUNK * D) + tl.arange(0, CHUNK * D)) * softmax_scale
    # (column / 8, warp, row in 8, column / 2 in 4, row / 8 in 2, column in 2), as `fragments` leaves them
    x = (
        x.to(Dq.dtype.element_ty)
        .reshape([D // 8, 4, 8, 4, 2, 2])
        .permute([1, 4, 2, 0, 3, 5])
        .reshape([CHUNK, D])
    )
    query = chunk * CHUNK + tl.arange(0, CHUNK)
    d = tl.arange(0, D)
    of_dq = Dq + i_batch * stride_qb + head * stride_qh + query.to(tl.int64)[:, None] * stride_qs
    tl.store(of_dq + d[None, :], x, mask=(query < q_len)[:, None])
