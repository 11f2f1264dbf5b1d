"""Spot checks of results that are too large to be compared as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.config import TokenDilation

from .cases import Case

PIECE = 2**26  # elements checked at a time


@dataclass
class QueryError:
    """Relative error of the output of one query."""

    position: int
    head: int
    error: float


def visible_keys(case: Case, layout: BlockLayout, position: int, head: int) -> list[slice]:
    """The keys that a query sees, one slice per block."""
    dilation = TokenDilation.from_user(case.segment_lengths, case.dilation_rates, case.block)
    row = position // case.block
    first, last = layout.row_lists.indptr[row : row + 2].tolist()
    keys = []
    for column in layout.row_lists.indices[first:last].tolist():
        rate = 1
        if dilation is not None:
            distance = abs(row - column) * case.block
            pairs = zip(dilation.segment_lengths, dilation.dilation_rates, strict=True)
            rate = next((rate for segment, rate in pairs if segment > distance), dilation.dilation_rates[-1])
        end = min((column + 1) * case.block, case.seqlen, position + 1 if case.causal else case.seqlen)
        keys.append(slice(column * case.block + head % rate, end, rate))
    return keys


def expected_output(
    case: Case, layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, position: int, head: int
) -> Tensor:
    """The output of a query of the first batch element: one softmax over its keys, in float64."""
    keys = visible_keys(case, layout, position, head)
    kv_head = head // (case.heads // case.num_kv_heads)
    seen_k = torch.cat([k[0, part, kv_head] for part in keys]).double()
    seen_v = torch.cat([v[0, part, kv_head] for part in keys]).double()
    scores = seen_k @ q[0, position, head].double() * case.head_dim**-0.5
    return torch.mv(seen_v.T, scores.softmax(0))


@torch.no_grad()
def query_errors(
    case: Case, layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, out: Tensor
) -> list[QueryError]:
    """Errors of the first and the last query and two in between, for the first and the last head."""
    last = case.seqlen - 1
    errors = []
    for head in sorted({0, case.heads - 1}):
        for position in sorted({0, last // 3, 2 * last // 3, last}):
            expected = expected_output(case, layout, q, k, v, position, head)
            off = (out[0, position, head].double() - expected).norm()
            errors.append(QueryError(position, head, float(off / expected.norm().clamp(min=1e-30))))
    return errors


def all_finite(x: Tensor) -> bool:
    """Whether a contiguous tensor has neither infinities nor NaN; takes little extra memory."""
    return all(bool(piece.isfinite().all()) for piece in x.detach().view(-1).split(PIECE))
