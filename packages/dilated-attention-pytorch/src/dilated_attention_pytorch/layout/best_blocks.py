"""The best blocks of every row: the definition in plain tensor operations, on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of a share of the softmax, relative to the largest: integers add up to the same in any order.
WEIGHT_BITS = 24


class Choice(NamedTuple):
    """Checked arguments of `select_blocks`."""

    n_slots: int  # the most blocks of a row
    top_p: float | None
    keep_diagonal: bool
    window: int
    sinks: int
    causal: bool


class Rows(NamedTuple):
    """A few rows of which blocks are chosen."""

    scores: Tensor
    """Floating point (heads, rows, n_cols)."""
    diagonal: Tensor
    """int64 (rows,)."""
    budgets: Tensor | None
    """Integers (heads, rows): the most blocks of each; None: `n_slots` of the choice."""


def diagonal_of(n_rows: int, n_cols: int, causal: bool, device: torch.device) -> Tensor:
    """Column of each row's diagonal block, int64 (n_rows,), as `BlockGrid.diagonal`."""
    rows = torch.arange(n_rows, device=device)
    return rows + (n_cols - n_rows) if causal else rows * n_cols // n_rows


def share_in_units(top_p: float) -> int:
    """top_p in units of the weights, at least 1."""
    return max(1, round(top_p * (1 << WEIGHT_BITS)))


def best_of(rows: Rows, choice: Choice) -> tuple[Tensor, Tensor]:
    """Indices (heads, rows, n_slots), ascending, and counts (heads, rows), both int32.

    Of equal scores the first columns are taken.
    """
    scores, n_cols = rows.scores, rows.scores.shape[2]
    col = torch.arange(n_cols, device=scores.device)
    before = rows.diagonal[:, None] - col  # (rows, n_cols)
    distance = before if choice.causal else before.abs()
    is_kept = (col < choice.sinks) | ((distance > 0) & (distance <= choice.window))
    if choice.keep_diagonal:
        is_kept = is_kept | (distance == 0)
    has_score = scores > -torch.inf  # nor nan
    if choice.causal:
        is_kept = is_kept & (before >= 0)
        has_score &= before >= 0

    is_candidate = has_score & ~is_kept
    candidates = scores.masked_fill(~is_candidate, -torch.inf)
    best = candidates.topk(choice.n_slots, dim=2).values
    most = choice.n_slots if rows.budgets is None else rows.budgets.clamp(max=choice.n_slots)
    left = (most - is_kept.sum(1)).clamp(min=0)  # (rows,) or (heads, rows)
    is_best = (best > -torch.inf) & (torch.arange(choice.n_slots, device=scores.device) < left[..., None])
    if choice.top_p is not None:
        is_best &= is_missing(scores, has_score, is_kept, best, choice.top_p)
    n_best = is_best.sum(2, keepdim=True)

    least = best.gather(2, (n_best - 1).clamp(min=0)).masked_fill(n_best == 0, torch.inf)
    is_above = candidates > least
    is_equal = is_candidate & (candidates == least)
    is_equal &= is_equal.cumsum(2, dtype=torch.int32) <= n_best - is_above.sum(2, keepdim=True)
    is_chosen = is_kept | is_above | is_equal
    place = is_chosen.cumsum(2).sub_(1).masked_fill_(~is_chosen, choice.n_slots)
    indices = torch.full((*scores.shape[:2], choice.n_slots + 1), -1, dtype=torch.int32, device=scores.device)
    indices.scatter_(2, place, col.to(torch.int32).expand_as(place))
    return indices[..., : choice.n_slots], is_chosen.sum(2, dtype=torch.int32)


def is_missing(scores: Tensor, has_score: Tensor, is_kept: Tensor, best: Tensor, top_p: float) -> Tensor:
    """Whether the blocks that come before it, those always kept and the better ones, add up to less than top_p."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    largest = scores.masked_fill(~has_score, -torch.inf).amax(2, keepdim=True).to(dtype)

    def weights(x: Tensor) -> Tensor:
        share = (x.to(dtype) - largest).exp().masked_fill(x == largest, 1.0)
        return (share * (1 << WEIGHT_BITS)).masked_fill(~(x > -torch.inf), 0.0).long()

    of_all = weights(scores).masked_fill(~has_score, 0)
    total, of_kept = (of_all.masked_fill(~mask, 0).sum(2, keepdim=True) for mask in (has_score, is_kept))
    wanted = (total * share_in_units(top_p) + ((1 << WEIGHT_BITS) - 1)) >> WEIGHT_BITS
    of_best = weights(best)
    return of_kept + of_best.cumsum(2) - of_best < wanted
