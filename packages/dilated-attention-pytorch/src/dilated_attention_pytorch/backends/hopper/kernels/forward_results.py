"""What a warpgroup of the forward kernel (forward.py) does with its sums: sinks, and stores of some rows of a tile."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate


@gluon.jit
def with_sink(m, l, sink_log2):
    """Sums with the sink of a head, a logit that only joins the denominator: factor for the output, m and l."""
    m_new = gl.maximum(m, sink_log2)
    empty = l == 0.0
    factor = gl.where(empty, 1.0, gl.exp2(m - m_new))
    return factor, gl.where(empty, m, m_new), gl.where(empty, 0.0, l * factor + gl.exp2(sink_log2 - m_new))


@gluon.jit
def by_factors(x, factors, layout: gl.constexpr):
    """A tile times the factors of its rows."""
    return x * gl.convert_layout(factors, gl.SliceLayout(1, layout))[:, None]


@aggregate
class ResultRows:
    """Rows of out of a head, from query0 on, of which those from first_query to end_query are stored."""

    i_batch: gl.tensor
    head: gl.tensor
    query0: gl.tensor
    first_query: gl.tensor
    end_query: gl.tensor


@gluon.jit
def store_part(results, out, out_tail, rows):
    """Store the rows of a tile that are queries of its sequence; the others are those of another, or of none."""
    store_columns(results, out, rows, 0)
    if out_tail is not None:
        store_columns(results, out_tail, rows, out.shape[1])


@gluon.jit
def store_columns(results, out, rows, FIRST: gl.constexpr):
    """Store rows of columns of out, the first of which is number FIRST."""
    layout: gl.constexpr = out.type.layout
    query = rows.query0 + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    COLUMNS: gl.constexpr = out.shape[1]
    d = FIRST + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    base = (
        results.out
        + rows.i_batch.to(gl.int64) * results.stride_ob
        + rows.head.to(gl.int64) * results.stride_oh
    )
    places = query.to(gl.int64) * results.stride_os
    is_query = (query >= rows.first_query) & (query < rows.end_query)
    gl.store(
        base + places[:, None] + d[None, :],
        out,
        mask=is_query[:, None] & (d < results.v_head_dim)[None, :],
    )
