"""What the scores of a step of the backward are made of, in units of log2; and sums of their gradients over parts of blocks."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .dropout import Dropout
from .score_terms import ScoreScale, parts_of_distance, score_scale


@aggregate
class TileDropout:
    """The dropout of a tile, its positions, and the share of the weights that is kept."""

    of_head: Dropout
    first_row: gl.tensor
    first_column: gl.tensor
    kept_share: gl.tensor


@aggregate
class StepTerms:
    """How the scores of a step are made of its products; what a call has not is None.

    slope: of ALiBi, in units of log2, and `distance`, from the first column of the tile to its first row.
    bias: of the block, in units of log2.
    slot: where the sums of the gradients of the scores go, one for each warp.
    dropout: which weights are dropped.
    """

    scale: ScoreScale
    slope: gl.tensor | gl.constexpr
    distance: gl.tensor | gl.constexpr
    bias: gl.tensor | gl.constexpr
    slot: gl.tensor | gl.constexpr
    dropout: TileDropout | gl.constexpr

    @gluon.jit
    def less(self, capped, lse, layout: gl.constexpr, OF_COLUMNS: gl.constexpr):
        """The scores, given what `capped` of the scale made of the products, less lse of the rows, or OF_COLUMNS."""
        scale = self.scale.log2
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
        if self.scale.before_cap is None:
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
def only_scaled(softmax_scale):
    """Scores that are nothing but scaled products."""
    return StepTerms(score_scale(softmax_scale, None), None, None, None, None, None)


@gluon.jit
def store_sums_of_warps(x, slot, factor):
    """Store the sum of what each of the four warps holds of a tile, 16 rows, times a factor, from `slot` on."""
    sums = gl.sum(gl.reshape(x, [4, 16 * x.shape[1]]), 1) * factor
    gl.store(slot + gl.arange(0, 4, layout=sums.type.layout), sums)
