"""Scores of pairs of a query and a key, in units of log2, and the sums of their gradients over parts of blocks."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .dropout import Dropout
from .softmax import LOG2E

LEAST_BIAS = gl.constexpr(-1.7e38)  # times LOG2E it is a float32, and so is that less a score


@aggregate
class TileDropout:
    """The dropout of a tile, its positions, and the share of the weights that is kept."""

    of_head: Dropout
    first_row: gl.tensor
    first_column: gl.tensor
    kept_share: gl.tensor


@aggregate
class ScoreTerms:
    """How the scores of a tile are made of its products; what a call has not is None.

    scale: of the products, in units of log2; with a softcap softmax_scale / softcap.
    cap: the softcap, in units of log2.
    slope: of ALiBi, in units of log2, and `distance`, from the first column of the tile to its first row.
    bias: of the block, in units of log2.
    slot: where the sums of the gradients of the scores go, one for each warp.
    dropout: which weights are dropped.
    """

    scale: gl.tensor
    cap: gl.tensor | gl.constexpr
    slope: gl.tensor | gl.constexpr
    distance: gl.tensor | gl.constexpr
    bias: gl.tensor | gl.constexpr
    slot: gl.tensor | gl.constexpr
    dropout: TileDropout | gl.constexpr

    @gluon.jit
    def capped(self, products):
        """tanh of the scaled products with a softcap, else the products."""
        if self.cap is None:
            return products
        else:
            return tanh(products * self.scale)

    @gluon.jit
    def less(self, capped, lse, layout: gl.constexpr, OF_COLUMNS: gl.constexpr):
        """The scores, given what `capped` made of the products, less lse of the rows, or OF_COLUMNS."""
        scale = self.scale
        if self.cap is not None:
            scale = self.cap
        if self.slope is None:
            x = capped * scale - over_scores(lse, OF_COLUMNS)
        else:
            N: gl.constexpr = capped.shape[1]
            # on one side of the diagonal distances are linear in row and column
            is_behind = self.distance + 63 <= 0
            slope = gl.where(is_behind, -self.slope, self.slope)
            row, column = parts_of_distance(self.distance, N, layout)
            lse, _ = gl.broadcast(over_scores(lse, OF_COLUMNS), capped)
            if OF_COLUMNS:
                x = capped * scale - (lse - column * slope) - row * slope
            else:
                x = capped * scale - (lse + row * slope) + column * slope
            if (self.distance < N - 1) & (self.distance + 63 > 0):
                ahead = row - column
                x += (ahead - gl.abs(ahead)) * self.slope
        return x

    @gluon.jit
    def of_products(self, gradient, capped):
        """The gradient of the scaled products, given that of the scores."""
        if self.cap is None:
            return gradient
        else:
            return gradient * (1.0 - capped * capped)


@gluon.jit
def over_scores(lse, OF_COLUMNS: gl.constexpr):
    """lse of rows or columns, to be broadcast to scores."""
    if OF_COLUMNS:
        return lse[None, :]
    else:
        return lse[:, None]


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
def only_scaled(scale_log2):
    """Scores that are nothing but scaled products."""
    return ScoreTerms(scale_log2, None, None, None, None, None, None)


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


@gluon.jit
def store_sums_of_warps(x, slot, factor):
    """Store the sum of what each of the four warps holds of a tile, 16 rows, times a factor, from `slot` on."""
    sums = gl.sum(gl.reshape(x, [4, 16 * x.shape[1]]), 1) * factor
    gl.store(slot + gl.arange(0, 4, layout=sums.type.layout), sums)
