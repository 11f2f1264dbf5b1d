"""Decoding: one layout row, its keys gathered head by head for all batch elements at once.

With few queries most time is spent on reading keys, and the keys of a head are read much faster if they are
contiguous. Only the active blocks of k and v are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem
from . import fused_kernel
from .gathered_keys import GatheredKeys, cached_arange, kv_heads
from .padding import padded_keys
from .scratch import Buffers, Scratch

MAX_ELEMENTS = 2**19  # of k gathered at a time, per thread


def suits(problem: AttentionProblem) -> bool:
    """Whether the layout has one row, in which all heads see equally many keys."""
    p = problem
    n_blocks = p.rows.indices.numel()
    if p.n_rows != 1 or len(p.rates) != 1 or n_blocks == 0:
        return False
    if p.layout_heads > 1:
        offsets = p.rows.indptr
        last = p.rows.indices[(offsets[1:] - 1).clamp(min=0)]
        if bool((offsets.diff() * p.layout_heads != n_blocks).any() or (last != last[0]).any()):
            return False
    return not p.is_causal or int(p.rows.indices[-1]) <= p.first_row


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p, height = problem, problem.q_len
    # key lists: one per kv head, or per query head with a layout
    n_heads = max(p.num_kv_heads, p.layout_heads)
    n_pairs = p.batch * n_heads  # of a batch element and a key list
    wide = torch.promote_types(p.q.dtype, torch.float32)
    # The kernel is slow in float16, and in bfloat16 with a single query.
    is_single = height * p.num_heads == n_heads
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 and not is_single else wide
    tokens = keys_of(p)
    n_keys = tokens.shape[1]
    batch = cached_arange(p.batch).view(-1, 1, 1) if p.batch > 1 else 0
    heads = kv_heads(p.layout_heads, p.num_heads, p.num_kv_heads)
    k = GatheredKeys("k", p.k, batch, heads, tokens, Scratch(dtype, buffers), None)
    v = GatheredKeys("v", p.v, batch, heads, tokens, k.scratch, k)
    mask = causal_mask(p, n_keys, p.num_heads // n_heads, dtype)
    padded = padded_keys(p)
    if padded is not None:
        hidden = padded[:, tokens].expand(-1, n_heads, -1).reshape(n_pairs, 1, n_keys)
        padding = torch.zeros(hidden.shape, dtype=dtype, device="cpu").masked_fill_(hidden, -torch.inf)
        padding = padding.unsqueeze(2)
        mask = padding if mask is None else padding + mask  # (n_pairs, 1, 1 or n_queries, n_keys)
    q = p.q if height == 1 else p.q.unflatten(2, (n_heads, -1)).permute(0, 2, 3, 1, 4)
    q = q.reshape(n_pairs, 1, -1, p.head_dim).to(dtype)  # query heads of a key list follow each other
    if q.stride(3) != 1:
        q = q.contiguous()
    outs, lses = [], []
    pairs_per_call = max(1, MAX_ELEMENTS * torch.get_num_threads() // (n_keys * p.head_dim))
    for start in range(0, n_pairs, pairs_per_call):
        pairs = slice(start, start + pairs_per_call)
        part_k, part_v = k.gather(pairs, n_keys), v.gather(pairs, n_keys)
        if padded is not None:
            for x in (part_k, part_v):  # memory past the end of a cache may hold NaN, and 0 * NaN is NaN
                x.masked_fill_(hidden[pairs].unsqueeze(-1), 0.0)
        part_mask = mask if padded is None or mask is None else mask[pairs]
        out, lse = fused_kernel.attention(q[pairs], part_k, part_v, part_mask, p.softmax_scale)
        if padded is not None and part_mask is not None:
            lse = lse.masked_fill((part_mask == -torch.inf).all(-1), -torch.inf)  # sees no key
        outs.append(out)
        lses.append(lse)
    out, lse = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (outs, lses))
    by_head = out.reshape(p.batch, p.num_heads, height, p.v_head_dim)
    return by_head.transpose(1, 2).contiguous().to(p.q.dtype), lse.reshape(p.batch, p.num_heads, height)


def keys_of(problem: AttentionProblem) -> Tensor:
    """Tokens of k and v that a query sees, int64 (layout_heads, n_keys), ascending."""
    p = problem
    blocks = p.rows.indices.view(p.layout_heads, -1, 1)
    tokens = torch.add(cached_arange(p.block_size), blocks, alpha=p.block_size).flatten(1)
    end = min(p.kv_len, p.q_offset + p.q_len) if p.is_causal else p.kv_len
    n_past_end = (int(p.rows.indices[-1]) + 1) * p.block_size - end
    return tokens if n_past_end <= 0 else tokens[:, :-n_past_end]


def causal_mask(problem: AttentionProblem, n_keys: int, n_heads: int, dtype: torch.dtype) -> Tensor | None:
    """0 or -inf (n_heads * q_len, n_keys), for the queries of `n_heads` heads, one head after the other."""
    p = problem
    if not p.is_causal or p.q_len == 1 or int(p.rows.indices[-1]) < p.first_row:
        return None
    mask = torch.zeros(n_heads, p.q_len, n_keys, dtype=dtype, device="cpu")
    diagonal = p.first_row * p.block_size
    n_last = min(p.kv_len, p.q_offset + p.q_len) - diagonal  # keys of the diagonal block
    after = torch.ones(p.q_len, n_last, dtype=torch.bool, device="cpu").triu_(p.q_offset - diagonal + 1)
    mask[:, :, n_keys - n_last :].masked_fill_(after, -torch.inf)
    return mask.flatten(0, 1)
