"""What the backward kernel needs beside the inputs of the forward: lse and delta of every query."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["q_len", "n_rows", "num_heads", "first_query"])
def prepare_kernel(
    Out, GradOut, GradLse, Lse, Stats,
    stride_ob, stride_os, stride_oh, stride_gb, stride_gs, stride_gh, stride_lb, stride_lh, stride_ls,
    q_len, n_rows, num_heads, first_query,
    D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """lse in units of log2 and delta = sum(grad_out * out) - grad_lse of BLOCK_M queries.

    Stats: float32 (batch * num_heads, n_rows * BLOCK_SIZE / BLOCK_M, 2, BLOCK_M), lse and -delta; +inf and 0 for queries that see no
    key or do not exist.
    """
    SUB: tl.constexpr = BLOCK_SIZE // BLOCK_M
    i_tile = tl.program_id(0) % (n_rows * SUB)
    batch_head = (tl.program_id(0) // (n_rows * SUB)).to(tl.int64)
    i_batch, head = batch_head // num_heads, batch_head % num_heads
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, D)
    query = first_query + i_tile * BLOCK_M + m
    inside = (query >= 0) & (query < q_len)
    query64 = query.to(tl.int64)
    out_ptrs = Out + i_batch * stride_ob + head * stride_oh + query64[:, None] * stride_os + d[None, :]
    grad_ptrs = GradOut + i_batch * stride_gb + head * stride_gh + query64[:, None] * stride_gs + d[None, :]
    out = tl.load(out_ptrs, mask=inside[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptrs, mask=inside[:, None], other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if HAS_GRAD_LSE:
        grad_lse = tl.load(
            GradLse + i_batch * stride_lb + head * stride_lh + query64 * stride_ls, mask=inside, other=0.0
        )
        delta -= grad_lse.to(tl.float32)
    lse = tl.load(Lse + batch_head * q_len + query, mask=inside, other=float("-inf"))
    none = lse == float("-inf")
    stats = Stats + (batch_head * n_rows * SUB + i_tile) * 2 * BLOCK_M
    tl.store(stats + m, tl.where(none, float("inf"), lse * 1.4426950408889634))
    tl.store(stats + BLOCK_M + m, tl.where(none, 0.0, -delta))  # what the product with v is added to
