"""Decoding of a batch whose sequences have lengths of their own: one query each, all computed together.

As in decode.py the active keys are gathered head by head. Shorter sequences are padded to the longest of a kernel call; the
longest come first, so that sequences of similar length share one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from . import fused_kernel
from .decode import MAX_ELEMENTS
from .gathered_keys import GatheredKeys, cached_arange, kv_heads
from .scratch import Buffers, Scratch


def suits(problem: AttentionProblem) -> bool:
    """Whether there are several sequences of at most one query, in a problem that the fused kernel supports."""
    p, sequences = problem, problem.sequences
    return (
        sequences is not None
        and sequences.max_q_len == 1
        and sequences.table.shape[0] > 1
        and p.key_padding_mask is None
        and len(p.rates) == 1
        and p.rows.indices.numel() > 0
        and p.k.numel() > 0
        and p.q.numel() > 0
    )


class Lists(NamedTuple):
    """The keys of n sequences, longest first."""

    sequence: Tensor  # int64 (n,), the number of each
    tokens: Tensor  # int64 (n, key lists or 1, n_keys), of k and v; a key that is visible stands for those that are not
    mask: Tensor  # 0 or -inf, of the same shape
    n_keys: list[int]  # of every sequence, with padding up to whole blocks and to the longest of its lists


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """out and lse, without sinks."""
    p = problem
    assert p.sequences is not None
    heads = kv_heads(p)
    n_heads, group = heads.shape[0], p.num_heads // heads.shape[0]
    wide = torch.promote_types(p.q.dtype, torch.float32)
    # The kernel is slow in float16, and in bfloat16 with a single query.
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 and group > 1 else wide
    lists = lists_of(p, dtype)
    element = lists.sequence * 0 if p.sequences.is_packed else lists.sequence
    query = p.sequences.column("q_start")[lists.sequence].long()
    batch = element.view(-1, 1, 1)
    k = GatheredKeys("k", p.k, batch, heads, lists.tokens, Scratch(dtype, buffers), None)
    v = GatheredKeys("v", p.v, batch, heads, lists.tokens, k.scratch, k)
    mask = lists.mask.expand(-1, n_heads, -1).reshape(-1, 1, 1, lists.mask.shape[2])
    q = p.q[element, query].to(dtype).view(-1, 1, group, p.head_dim)  # heads of a key list follow each other
    made, made_lse, start = [], [], 0
    while start < q.shape[0]:
        n_keys = lists.n_keys[start // n_heads]
        n_pairs = max(1, MAX_ELEMENTS * torch.get_num_threads() // (n_keys * p.head_dim))
        pairs = slice(start, start + n_pairs)
        part_k, part_v = k.gather(pairs, n_keys), v.gather(pairs, n_keys)
        part_mask = mask[pairs, :, :, :n_keys]
        part, part_lse = fused_kernel.attention(q[pairs], part_k, part_v, part_mask, p.softmax_scale)
        sees_none = part_mask[..., :1] == -torch.inf  # the first key is only hidden where all are
        made.append(part.masked_fill_(sees_none, 0.0))
        made_lse.append(part_lse.masked_fill_(sees_none.squeeze(-1), -torch.inf))
        start += n_pairs
    out = torch.zeros(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device="cpu")
    lse = torch.full((p.batch, p.num_heads, p.q_len), -torch.inf, dtype=wide, device="cpu")
    if made:
        out[element, query] = torch.cat(made).view(-1, p.num_heads, p.v_head_dim).to(p.q.dtype)
        lse[element, :, query] = torch.cat(made_lse).view(-1, p.num_heads)
    return out, lse


def lists_of(problem: AttentionProblem, dtype: torch.dtype) -> Lists:
    """The keys that the query of every sequence sees, and a mask in `dtype`; sequences without a query are left out."""
    p, grid, size = problem, problem.grid, problem.block_size
    assert p.sequences is not None
    table = p.sequences.table.long()
    sequence = table[:, 1].nonzero().flatten()
    _, _, kv_start, kv_len, position = table[sequence].unbind(1)
    end = kv_len.clamp(max=grid.n_cols * size)
    if p.is_causal:
        end = torch.minimum(end, position + 1)
    row = torch.div(position, size, rounding_mode="floor") - grid.first_row
    in_layout = (row >= 0) & (row < grid.n_rows)
    element = sequence if p.layout_batch > 1 else sequence * 0
    first_list = element * (p.layout_heads * grid.n_rows) + row.clamp(0, grid.n_rows - 1)
    lists = first_list[:, None] + cached_arange(p.layout_heads) * grid.n_rows
    starts, stops = p.rows.indptr[lists].long(), p.rows.indptr[lists + 1].long()
    n_blocks = (stops - starts) * in_layout[:, None]  # (n, layout_heads)
    longest, order = n_blocks.amax(1).sort(descending=True)
    n_keys = [max(1, n) * size for n in longest.tolist()]
    if not n_keys:
        return Lists(
            sequence, sequence.view(0, 1, 1), torch.zeros(0, 1, 1, dtype=dtype, device="cpu"), n_keys
        )

    n_blocks, starts = n_blocks[order, :, None], starts[order, :, None]
    end, kv_start = end[order, None, None], kv_start[order, None, None]
    place = cached_arange(n_keys[0] // size)
    first = p.rows.indices[(starts + place).clamp_(max=p.rows.indices.numel() - 1)].long() * size
    is_hidden = (place >= n_blocks) | (first >= end)
    # the first block stands for hidden ones, the last visible key of a block for those behind the end
    tokens = torch.where(is_hidden, first[:, :, :1], first).unsqueeze(-1) + cached_arange(size)
    last = (end - 1).unsqueeze(-1)
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device="cpu").masked_fill_(is_hidden, -torch.inf)
    mask = mask.unsqueeze(-1).masked_fill(tokens > last, -torch.inf).flatten(2)
    tokens = tokens.clamp_(max=last).add_(kv_start.unsqueeze(-1)).clamp_(min=0).flatten(2)
    n_lists = max(p.num_kv_heads, p.layout_heads)
    if 1 < p.layout_heads < n_lists:
        tokens, mask = (x.repeat_interleave(n_lists // p.layout_heads, 1) for x in (tokens, mask))
    return Lists(sequence[order], tokens, mask, n_keys)
