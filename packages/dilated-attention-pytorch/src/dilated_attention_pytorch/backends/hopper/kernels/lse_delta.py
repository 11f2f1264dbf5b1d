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
from .softmax import INFINITY, LOG2E

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


@aggregate
class SavedRows:
    """out, its tail (tma.py) or None, lse and the gradient of lse (or 0) of the queries of a tile."""

    out: gl.tensor
    tail: gl.tensor | gl.constexpr
    lse: gl.tensor
    grad_lse: gl.tensor


@gluon.jit
def load_out(saved, i_batch, head, query, begin, end, FIRST: gl.constexpr, D: gl.constexpr):
    """D columns of out, from number FIRST on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])  # 16 bytes a thread
    rows = query + gl.arange(0, CHUNK, layout=gl.SliceLayout(1, layout))
    d = FIRST + gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    base = saved.out + i_batch.to(gl.int64) * saved.stride_ob + head.to(gl.int64) * saved.stride_oh
    inside = (rows >= begin) & (rows < end)
    return gl.load(
        base + rows.to(gl.int64)[:, None] * saved.stride_os + d[None, :],
        mask=inside[:, None] & (d // 8 < saved.v_dim // 8)[None, :],  # in eights: 16 bytes a thread
        other=0.0,
    )


@gluon.jit
def load_saved(saved, i_batch, head, batch_head, query, begin, end, D: gl.constexpr):
    """What is saved of the queries from `query` on, of which those from begin to end count; D columns of out.

    They arrive while grad_out is waited for.
    """
    MAIN: gl.constexpr = 128 if D == 192 else D
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // MAIN, MAIN // 8], [4, 1], [1, 0])
    rows = query + gl.arange(0, CHUNK, layout=gl.SliceLayout(1, layout))
    inside = (rows >= begin) & (rows < end)
    out, tail = load_out(saved, i_batch, head, query, begin, end, 0, MAIN), None
    if MAIN < D:
        tail = load_out(saved, i_batch, head, query, begin, end, MAIN, 64)
    lse = gl.load(saved.lse + batch_head.to(gl.int64) * saved.q_len + rows, mask=inside, other=-INFINITY)
    base_lse = saved.grad_lse + i_batch.to(gl.int64) * saved.stride_lb + head.to(gl.int64) * saved.stride_lh
    has_grad = inside & (saved.has_grad_lse != 0)
    grad_lse = gl.load(base_lse + rows.to(gl.int64) * saved.stride_ls, mask=has_grad, other=0.0)
    return SavedRows(out, tail, lse, grad_lse.to(gl.float32))


@gluon.jit
def sums_of_products(out, grad_out):
    """The sum of out * grad_out of every row; grad_out is in shared memory."""
    return gl.sum(out.to(gl.float32) * grad_out.load(out.type.layout).to(gl.float32), 1)


@gluon.jit
def stats_of_queries(rows, grad_outs, tails, slot, stats, n_rest, kept_share, layout: gl.constexpr):
    """lse and -delta for the rows of a tile of scores; the first n_rest of them are also stored.

    grad_outs, tails: tiles of grad_out, of which that in `slot` is meant. kept_share: of the weights, None without dropout.
    """
    row_layout: gl.constexpr = gl.SliceLayout(1, rows.out.type.layout)
    m = gl.arange(0, CHUNK, layout=row_layout)
    delta = sums_of_products(rows.out, grad_outs.index(slot))
    if tails is not None:
        delta += gl.convert_layout(sums_of_products(rows.tail, tails.index(slot)), row_layout)
    delta -= rows.grad_lse
    none = rows.lse == -INFINITY
    lse = gl.where(none, INFINITY, rows.lse * LOG2E)
    delta = gl.where(none, 0.0, -delta)
    if kept_share is not None:
        delta *= kept_share
    gl.store(stats + m, lse, mask=m < n_rest)
    gl.store(stats + CHUNK + m, delta, mask=m < n_rest)
    scores_layout: gl.constexpr = gl.SliceLayout(1, layout)
    return QueryStats(gl.convert_layout(lse, scores_layout), gl.convert_layout(delta, scores_layout))
