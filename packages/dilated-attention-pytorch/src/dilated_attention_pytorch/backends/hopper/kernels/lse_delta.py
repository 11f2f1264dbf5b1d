"""lse and delta of every query: what the backward needs beside the inputs of the forward.

The rows pass works them out for the queries that a warpgroup keeps, and leaves them to the columns pass:

    Stats   float32 (batch * num_heads, n_rows * BLOCK_SIZE / CHUNK, 2, CHUNK): lse in units of log2, and -delta, which the
            product with v is added to; +inf and 0 for queries that see no key or do not exist

with delta = sum(grad_out * out) - grad_lse (Dao et al., FlashAttention-2, arXiv:2307.08691).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .attend import LOG2E
from .softmax import INFINITY

CHUNK = gl.constexpr(64)  # queries whose lse stand side by side: those of a warpgroup


@gluon.jit
def load_saved(saved, lse_of, i_batch, head, batch_head, query, D: gl.constexpr, HAS_GRAD_LSE: gl.constexpr):
    """out, lse and the gradient of lse of the queries from `query` on: they come while grad_out is waited for."""
    Out, stride_b, stride_s, stride_h, q_len = saved
    Lse, GradLse, stride_lb, stride_lh, stride_ls = lse_of
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])  # 16 bytes a thread
    rows = query + gl.arange(0, CHUNK, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    base = Out + i_batch.to(gl.int64) * stride_b + head.to(gl.int64) * stride_h
    inside = (rows >= 0) & (rows < q_len)
    out = gl.load(base + rows.to(gl.int64)[:, None] * stride_s + d[None, :], mask=inside[:, None], other=0.0)
    lse = gl.load(Lse + batch_head.to(gl.int64) * q_len + rows, mask=inside, other=-INFINITY)
    grad_lse = 0.0
    if HAS_GRAD_LSE:
        base_lse = GradLse + i_batch.to(gl.int64) * stride_lb + head.to(gl.int64) * stride_lh
        grad_lse = gl.load(base_lse + rows.to(gl.int64) * stride_ls, mask=inside, other=0.0).to(gl.float32)
    return out, lse, grad_lse


@gluon.jit
def stats_of_queries(out, lse, grad_lse, grad_out_smem, stats, n_rest, layout: gl.constexpr):
    """lse and -delta as rows of a tile of scores; also stored, the first n_rest of them."""
    row_layout: gl.constexpr = gl.SliceLayout(1, out.type.layout)
    m = gl.arange(0, CHUNK, layout=row_layout)
    delta = gl.sum(out.to(gl.float32) * grad_out_smem.load(out.type.layout).to(gl.float32), 1) - grad_lse
    none = lse == -INFINITY
    lse = gl.where(none, INFINITY, lse * LOG2E)
    delta = gl.where(none, 0.0, -delta)
    gl.store(stats + m, lse, mask=m < n_rest)
    gl.store(stats + CHUNK + m, delta, mask=m < n_rest)
    scores_layout: gl.constexpr = gl.SliceLayout(1, layout)
    return gl.convert_layout(lse, scores_layout), gl.convert_layout(delta, scores_layout)
