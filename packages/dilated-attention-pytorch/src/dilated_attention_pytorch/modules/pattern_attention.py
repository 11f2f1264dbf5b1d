"""attend_to_pattern: attention over the layout of a pattern, eager or compiled, with dense weights if asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.reference import attention_reference, attention_weights
from ..call import PLAIN_TYPES
from ..eager import is_plain_eager
from ..functional import block_sparse_attention, run_call, run_operator
from ..layout.cache import LAYOUTS, Pattern
from ..validation.call import check_call
from .base import dense_problem


class Attended(NamedTuple):
    """What attention returns."""

    out: Tensor
    """(batch, q_len, num_heads, head_dim)."""
    lse: Tensor
    """(batch, num_heads, q_len), float32 or float64."""
    weights: Tensor | None
    """After dropout, (batch, num_heads, q_len, kv_len), float32 or float64; None if nobody asked."""


def attend_to_pattern(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    is_causal: bool,
    need_weights: bool,
    backend: str | None,
    **options: Any,
) -> Attended:
    """`block_sparse_attention` over the layout for the lengths of q and k; options as there.

    The layout comes from the cache of all modules; under torch.compile and the like when the graph runs.
    """
    if k.shape[1] == 0 or q.shape[1] == 0:
        return without_tokens(q, k, v, need_weights)
    if is_plain_eager() and type(q) in PLAIN_TYPES and not q.is_meta:
        layout = LAYOUTS.covering(pattern, q.shape[1], k.shape[1], is_causal, q.device)
        if not need_weights:
            out, lse = block_sparse_attention(
                q, k, v, layout, is_causal=is_causal, backend=backend, return_lse=True, **options
            )
            return Attended(out, lse, None)
        call = check_call(q, k, v, layout, is_causal=is_causal, backend=backend, **options)
        out, lse = run_call(call, layout, backend)
        return Attended(out, lse, attention_weights(call.dense_problem(layout))[0])
    call = check_call(q, k, v, pattern, is_causal=is_causal, backend=backend, **options)
    if backend == "reference":
        out, lse = attention_reference(dense_problem(call, pattern))
    else:
        out, lse = run_operator(call, pattern, backend)
    weights = None
    if need_weights and q.is_meta:  # which has no layout
        weights = lse.new_empty(*lse.shape, k.shape[1])
    elif need_weights:
        weights = attention_weights(dense_problem(call, pattern))[0]
    return Attended(out, lse, weights)


def without_tokens(q: Tensor, k: Tensor, v: Tensor, need_weights: bool) -> Attended:
    """Attention of no queries, or to no keys: zeros, with a zero gradient."""
    batch, q_len, num_heads, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    lse = torch.full((batch, num_heads, q_len), -torch.inf, dtype=dtype, device=q.device)
    out = q.masked_fill(torch.ones((), dtype=torch.bool, device=q.device), 0.0)
    weights = lse.new_zeros(batch, num_heads, q_len, k.shape[1]) if need_weights else None
    return Attended(out, lse, weights)
