"""What the launches of a forward whose rows are split (shares.py) are given: that of the shares, then that which adds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from .passes import FORWARD
from .wide import call_tensors

MERGED_TOKENS = 16  # queries of a program


class ShareResults(NamedTuple):
    """What the shares leave, float32."""

    out: Tensor
    """(n_shares * batch, q_len, num_heads, head_dim)"""
    lse: Tensor
    """(n_shares * batch, num_heads, q_len)"""


def empty_results(problem: AttentionProblem, n_shares: int) -> ShareResults:
    """Memory for them."""
    p, n = problem, n_shares * problem.batch
    out = torch.empty(n, p.q_len, p.num_heads, p.head_dim, dtype=torch.float32, device=p.q.device)
    lse = torch.empty(n, p.num_heads, p.q_len, dtype=torch.float32, device=p.q.device)
    return ShareResults(out, lse)


def share_arguments(
    problem: AttentionProblem, results: ShareResults, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Every argument of the forward kernel; the problem is that of the shares."""
    p = problem
    made = FORWARD.arguments(p, results.out, results.lse, {**tensors, "OutRows": results.out})
    numbers = {"n_sequences": p.layout_batch * p.batch, "n_elements": p.batch}
    return {**made, **numbers, "desc_out": (p.q, 64, 0)}  # nothing is stored through it


def share_tensors(problem: AttentionProblem, results: ShareResults) -> dict[str, Tensor]:
    """The pointers of the forward kernel behind the tile counter; the problem is that of the shares."""
    return FORWARD.extra_tensors(problem, results.out, call_tensors(problem))


def merge_arguments(
    results: ShareResults, n_shares: int, out: Tensor, lse: Tensor, sinks: Tensor | None
) -> tuple[int, tuple[Any, ...]]:
    """How many programs of the kernel that adds the shares, and its arguments in their order."""
    batch, q_len, num_heads, dim = out.shape
    sinks = None if sinks is None else sinks.detach().to(torch.float32).contiguous()
    steps = (out.stride(0), out.stride(1), out.stride(2))
    return batch * num_heads * -(-q_len // MERGED_TOKENS), (
        results.out, results.lse, out, lse, sinks, n_shares, batch, q_len, num_heads, *steps, dim, MERGED_TOKENS
    )  # fmt: skip
