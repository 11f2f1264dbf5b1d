"""The way of decoding: one row of the layout, its keys gathered head by head for all batch elements at once.

With few queries the time goes into reading the keys, and those of one head are read much faster where they lie
together. Nothing but the active blocks of k and v is touched.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..problem import AttentionProblem
from . import flash
from .padding import padded_keys


@lru_cache(maxsize=64)
def counting(n: int) -> Tensor:
    """0 to n - 1, int64."""
    with torch.inference_mode(False):
        return torch.arange(n, device="cpu")


def suits(problem: AttentionProblem) -> bool:
    """Whether there is one row, in which all heads see as many keys."""
    p = problem
    n_blocks = p.rows.indices.numel()
    if p.n_rows != 1 or len(p.rates) != 1 or n_blocks == 0:
        return False
    if p.layout_heads > 1:
        offsets = p.rows.offsets
        last = p.rows.indices[(offsets[1:] - 1).clamp(min=0)]
        if bool((offsets.diff() * p.layout_heads != n_blocks).any() or (last != last[0]).any()):
            return False
    return not p.is_causal or int(p.rows.indices[-1]) <= p.first_row


def forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    p, height = problem, problem.q_len
    n_heads = max(
        p.num_kv_heads, p.layout_heads
    )  # lists of keys: more than kv heads if query heads have own layouts
    wide = torch.promote_types(p.q.dtype, torch.float32)
    # The kernel multiplies bfloat16 well but for single queries, and float16 badly.
    is_single = height * p.num_heads == n_heads
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 and not is_single else wide
    tokens = keys_of(p)
    k_index = index_of(p, p.k, tokens)
    v_index = k_index if p.v.stride() == p.k.stride() else index_of(p, p.v, tokens)
    k, v = gathered(p, p.k, k_index, tokens), gathered(p, p.v, v_index, tokens)
    mask = causal_mask(p, tokens.shape[1], p.num_heads // n_heads, dtype)
    padded = padded_keys(p)
    if padded is not None:
        hidden = padded[:, tokens]  # (batch, 1 or n_heads, n_keys)
        k, v = (
            x.masked_fill(hidden.unsqueeze(-1), 0.0) for x in (k, v)
        )  # memory behind the end may hold NaN
        padding = torch.zeros(hidden.shape, dtype=dtype, device="cpu").masked_fill_(hidden, -torch.inf)
        mask = padding.unsqueeze(2) if mask is None else padding.unsqueeze(2) + mask
    q = p.q if height == 1 else p.q.unflatten(2, (n_heads, -1)).permute(0, 2, 3, 1, 4)
    q = q.reshape(p.batch, n_heads, -1, p.head_dim)  # (batch, n_heads, heads of each * height, head_dim)
    if q.stride(3) != 1:
        q = q.contiguous()
    out, lse = flash.attention(q.to(dtype), k.to(dtype), v.to(dtype), mask, p.softmax_scale)
    if padded is not None:
        assert mask is not None
        lse = lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)  # sees no key
    by_head = out.reshape(p.batch, p.num_heads, height, p.v_head_dim)
    return by_head.transpose(1, 2).contiguous().to(p.q.dtype), lse.reshape(p.batch, p.num_heads, height)


def keys_of(problem: AttentionProblem) -> Tensor:
    """Tokens of k and v that some query sees, int64 (layout_heads, n_keys), ascending."""
    p = problem
    blocks = p.rows.indices.view(p.layout_heads, -1, 1)
    tokens = torch.add(counting(p.block_size), blocks, alpha=p.block_size).flatten(1)
    end = min(p.kv_len, p.q_offset + p.q_len) if p.is_causal else p.kv_len
    behind = (int(p.rows.indices[-1]) + 1) * p.block_size - end
    return tokens if behind <= 0 else tokens[:, :-behind]


def index_of(problem: AttentionProblem, x: Tensor, tokens: Tensor) -> Tensor | None:
    """Row of the memory of k or v that holds each (batch element, head, token), if strides are rows of head_dim."""
    p, dim = problem, x.shape[3]
    batch_step, token_step, head_step, step = x.stride()
    if step != 1 or batch_step % dim or token_step % dim or head_step % dim:
        return None
    index = tokens if token_step == dim else tokens * (token_step // dim)
    index = torch.add(index, kv_heads(p), alpha=head_step // dim)
    return (
        index if p.batch == 1 else torch.add(index, counting(p.batch).view(-1, 1, 1), alpha=batch_step // dim)
    )


def kv_heads(problem: AttentionProblem) -> Tensor:
    """The kv head of every list of keys, (n_heads, 1)."""
    p = problem
    if p.layout_heads <= p.num_kv_heads:
        return counting(p.num_kv_heads).view(-1, 1)
    return counting(p.num_heads).view(-1, 1) // (p.num_heads // p.num_kv_heads)


def gathered(problem: AttentionProblem, x: Tensor, index: Tensor | None, tokens: Tensor) -> Tensor:
    """The keys of k or v, (batch, n_heads, n_keys, dim)."""
    batch, _, _, dim = x.shape
    if index is None:
        return x[counting(batch).view(-1, 1, 1), tokens, kv_heads(problem)]
    n_rows = 1 + sum((size - 1) * step for size, step in zip(x.shape[:3], x.stride(), strict=False)) // dim
    rows = x.as_strided((n_rows, dim), (dim, 1)).index_select(0, index.view(-1))
    return rows.view(batch, -1, tokens.shape[1], dim)


def causal_mask(problem: AttentionProblem, n_keys: int, n_heads: int, dtype: torch.dtype) -> Tensor | None:
    """0 or -inf (n_heads * q_len, n_keys), for the queries of as many heads one after the other."""
    p = problem
    if not p.is_causal or p.q_len == 1 or int(p.rows.indices[-1]) < p.first_row:
        return None
    mask = torch.zeros(n_heads, p.q_len, n_keys, dtype=dtype, device="cpu")
    # the last key is at the last query's position
    after = torch.ones(p.q_len, p.q_len, dtype=torch.bool, device="cpu").triu_(1)
    mask[:, :, n_keys - p.q_len :].masked_fill_(after, -torch.inf)
    return mask.flatten(0, 1)
