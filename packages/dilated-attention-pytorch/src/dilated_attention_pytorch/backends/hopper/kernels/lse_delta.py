"""lse and delta of every query: what the backward needs beside the inputs of the forward.

The dq pass computes them for the queries that a warpgroup keeps, and leaves them to the dkdv pass:

    Stats   float32 (batch * num_heads, n_rows * BLOCK_SIZE / CHUNK, 2, CHUNK): lse in units of log2, and -delta, to which the
            product with v is added; +inf and 0 for queries that see no key or do not exist. With dropout -delta times the
            share of the weights that is kept

with delta = sum(grad_out * out) - grad_lse (Dao et al., FlashAttention-2, arXiv:2307.08691).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .attend import LOG2E
from .softmax import INFINITY

CHUNK = gl.constexpr(64)  # queries whose lse are adjacent in memory: those of a warpgroup


@aggregate
class Saved:
    """out and lse of the forward and the gradient of lse, with their strides; an out stride of 1 is a constant."""

    out: gl.tensor
    stride_ob: gl.tensor | gl.constexpr
    stride_os: gl.tensor | gl.constexpr
    stride_oh: gl.tensor | gl.constexpr
    lse: gl.tensor
    grad_lse: gl.tensor
    stride_lb: gl.tensor
    stride_lh: gl.tensor
    stride_ls: gl.tensor
    has_grad_lse: gl.tensor
    q_len: gl.tensor
    v_dim: gl.tensor


@aggregate
class QueryStats:
    """lse in units of log2, and -delta, of the queries of a tile."""

    lse: gl.tensor | gl.constexpr
    delta: gl.tensor | gl.constexpr


@gluon.jit
def load_saved(saved, i_batch, head, batch_head, query, begin, end, D: gl.constexpr):
    """out, lse and the gradient of lse (or 0) of the queries from `query` on, of which those from begin to end count.

    They arrive while grad_out is waited for.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    rows = query + gl.arange(0, CHUNK, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    base = saved.out + i_batch.to(gl.int64) * saved.stride_ob + head.to(gl.int64) * saved.stride_oh
    inside = (rows >= begin) & (rows < end)
    out = gl.load(
        base + rows.to(gl.int64)[:, None] * saved.stride_os + d[None, :],
        mask=inside[:, None] & (d // 8 < saved.v_dim // 8)[None, :],  # in eights: 16 bytes a thread
        other=0.0,
    )
    lse = gl.load(saved.lse + batch_head.to(gl.int64) * saved.q_len + rows, mask=inside, other=-INFINITY)
    base_lse = saved.grad_lse + i_batch.to(gl.int64) * saved.stride_lb + head.to(gl.int64) * saved.stride_lh
    has_grad = inside & (saved.has_grad_lse != 0)
    grad_lse = gl.load(base_lse + rows.to(gl.int64) * saved.stride_ls, mask=has_grad, other=0.0)
    return out, lse, grad_lse.to(gl.float32)


@gluon.jit
def stats_of_queries(out, lse, grad_lse, grad_out_smem, stats, n_rest, kept_share, layout: gl.constexpr):
    """lse and -delta for the rows of a tile of scores; the first n_rest of them are also stored.

    kept_share: of the weights, None without dropout.
    """
    row_layout: gl.constexpr = gl.SliceLayout(1, out.type.layout)
    m = gl.arange(0, CHUNK, layout=row_layout)
    delta = gl.sum(out.to(gl.float32) * grad_out_smem.load(out.type.layout).to(gl.float32), 1) - grad_lse
    none = lse == -INFINITY
    lse = gl.where(none, INFINITY, lse * LOG2E)
    delta = gl.where(none, 0.0, -delta)
    if kept_share is not None:
        delta *= kept_share
    gl.store(stats + m, lse, mask=m < n_rest)
    gl.store(stats + CHUNK + m, delta, mask=m < n_rest)
    scores_layout: gl.constexpr = gl.SliceLayout(1, layout)
    return QueryStats(gl.convert_layout(lse, scores_layout), gl.convert_layout(delta, scores_layout))
