"""Scores of pairs of a query and a key, in units of log2, as the forward and the backward make them of products."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .softmax import LOG2E

LEAST_BIAS = gl.constexpr(-1.7e38)  # times LOG2E it is a float32, and so is that less a score


@aggregate
class ScoreScale:
    """Scores are `log2` times the products, or with a softcap times the tanh of `before_cap` times the products, else None."""

    before_cap: gl.tensor | gl.constexpr
    log2: gl.tensor

    @gluon.jit
    def capped(self, products):
        """What is multiplied by `log2`."""
        if self.before_cap is not None:
            products = tanh(products * self.before_cap)
        return products


@gluon.jit
def score_scale(softmax_scale, softcap):
    """The scale of a call; softcap: None if it has none."""
    if softcap is None:
        return ScoreScale(None, softmax_scale * LOG2E)
    else:
        return ScoreScale(softmax_scale / softcap, softcap * LOG2E)


@gluon.jit
def parts_of_distance(distance, N: gl.constexpr, layout: gl.constexpr):
    """(64, N) each: what the row and the column add to the distance from a column to a row; `distance`: of the first ones.

    A thread holds every fourth pair of columns: what its columns add to its first one are constants.
    """
    zeros = gl.reshape(gl.full([64, N], 0.0, gl.float32, layout=layout), [64, N // 8, 4, 2])
    parent: gl.constexpr = zeros.type.layout
    of_row: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, parent)))
    of_octet: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, parent)))
    of_thread: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, parent)))
    of_pair: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, parent)))
    row, octet = gl.arange(0, 64, layout=of_row), gl.arange(0, N // 8, layout=of_octet)
    thread, pair = gl.arange(0, 4, layout=of_thread), gl.arange(0, 2, layout=of_pair)
    first = (distance + row[:, None, None, None] - 2 * thread[None, None, :, None]).to(gl.float32) + zeros
    behind = (8 * octet[None, :, None, None] + pair[None, None, None, :]).to(gl.float32) + zeros
    first = gl.convert_layout(gl.reshape(first, [64, N]), layout, assert_trivial=True)
    return first, gl.convert_layout(gl.reshape(behind, [64, N]), layout, assert_trivial=True)


@gluon.jit
def tanh(x):
    """The hyperbolic tangent, to 2**-11, in one instruction."""
    return gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def in_log2(bias):
    """A bias in units of log2; one that is finite stays finite."""
    return gl.where(bias == float("-inf"), bias, gl.maximum(bias, LEAST_BIAS) * LOG2E)
