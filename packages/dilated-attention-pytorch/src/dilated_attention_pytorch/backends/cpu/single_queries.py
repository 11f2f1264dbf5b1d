"""Decoding of a batch whose sequences have lengths of their own: one query each, all computed together.

As in decode.py the active keys are gathered head by head. Shorter sequences are padded to the longest of a kernel call; the
longest come first, so that sequences of similar length share one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...grid import BlockGrid
from ...layout.lists import BlockLists
from ..decode_problem import DecodeProblem
from ..problem import AttentionProblem
from . import fused_kernel
from .decode import MAX_ELEMENTS
from .gathered_keys import GatheredKeys, cached_arange, kv_heads
from .scratch import Buffers, Scratch


class SingleQueries(NamedTuple):
    """n queries, each at the end of its own keys or somewhere in them; the vectors are int64 (n,)."""

    q: Tensor  # (n, num_heads, head_dim)
    position: Tensor
    k: Tensor  # (elements or pages, tokens, num_kv_heads, head_dim)
    v: Tensor
    element: Tensor  # of k and v, or of block_table
    block_table: Tensor | None  # the pages of every element, as of DecodeInputs
    kv_start: Tensor
    kv_len: Tensor
    rows: BlockLists  # without distance classes
    layout_element: Tensor
    layout_heads: int
    grid: BlockGrid
    is_causal: bool
    softmax_scale: float

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[2]


class Keys(NamedTuple):
    """The keys of n queries, longest lists first."""

    order: Tensor  # int64 (n,), the query of each
    tokens: Tensor  # int64 (n, key lists or 1, n_keys); a key that is visible stands for those that are not
    mask: Tensor  # 0 or -inf, of the same shape
    n_keys: list[int]  # of every query, with padding up to whole blocks and to the longest of its lists


def suits(problem: AttentionProblem) -> bool:
    """Whether there are several sequences of at most one query, in a problem that the fused kernel supports."""
    p, sequences = problem, problem.sequences
    return (
        sequences is not None
        and sequences.max_q_len == 1
        and sequences.table.shape[0] > 1
        and p.key_padding_mask is None
        and len(p.rates) == 1
        and has_keys(p.rows, p.q, p.k)
    )


def suits_decode(problem: DecodeProblem) -> bool:
    """Whether a decoding call has one query for every element, and nothing that changes its scores."""
    p, x = problem, problem.inputs
    return (
        p.q_len == 1
        and p.head_dim == p.v_head_dim
        and p.softcap == 0.0
        and p.block_masks is None
        and x.alibi_slopes is None
        and has_keys(p.rows, x.q, x.k_cache)
        and p.max_len > 0
    )


def has_keys(rows: BlockLists, q: Tensor, k: Tensor) -> bool:
    """Whether there is anything to compute."""
    return rows.indices.numel() > 0 and q.numel() > 0 and k.numel() > 0


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """out and lse, without sinks, of a problem that this `suits`."""
    p = problem
    assert p.sequences is not None
    table = p.sequences.table.long()
    sequence = table[:, 1].nonzero().flatten()  # those that have a query
    query, _, kv_start, kv_len, position = table[sequence].unbind(1)
    element = sequence * 0 if p.sequences.is_packed else sequence
    made, made_lse = attend(
        SingleQueries(
            q=p.q[element, query],
            position=position,
            k=p.k,
            v=p.v,
            element=element,
            block_table=None,
            kv_start=kv_start,
            kv_len=kv_len,
            rows=p.rows,
            layout_element=sequence if p.layout_batch > 1 else sequence * 0,
            layout_heads=p.layout_heads,
            grid=p.grid,
            is_causal=p.is_causal,
            softmax_scale=p.softmax_scale,
        ),
        buffers,
    )
    out = torch.zeros(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device="cpu")
    lse = torch.full((p.batch, p.num_heads, p.q_len), -torch.inf, dtype=made_lse.dtype, device="cpu")
    out[element, query] = made
    lse[element, :, query] = made_lse
    return out, lse


def decode(problem: DecodeProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """out and lse, without sinks, of a decoding call that this `suits_decode`."""
    p, x = problem, problem.inputs
    element = cached_arange(p.batch)
    length = x.cache_lengths.long()
    end = length.clamp(0, p.max_len)
    start = element * 0 if x.kv_starts is None else torch.minimum(x.kv_starts.long().clamp(min=0), end)
    made, made_lse = attend(
        SingleQueries(
            q=x.q[:, 0],
            position=length - start - 1,
            k=x.k_cache,
            v=x.v_cache,
            element=element,
            block_table=x.block_table,
            kv_start=start,
            kv_len=end - start,
            rows=p.rows,
            layout_element=element if p.layout_batch > 1 else element * 0,
            layout_heads=p.layout_heads,
            grid=p.grid,
            is_causal=True,
            softmax_scale=p.softmax_scale,
        ),
        buffers,
    )
    return made.unsqueeze(1), made_lse.unsqueeze(2)


def attend(queries: SingleQueries, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """out (n, num_heads, head_dim) in q's dtype and lse (n, num_heads)."""
    x = queries
    heads = kv_heads(x.layout_heads, x.num_heads, x.num_kv_heads)
    n_heads, group = heads.shape[0], x.num_heads // heads.shape[0]
    wide = torch.promote_types(x.q.dtype, torch.float32)
    # The kernel is slow in float16, and in bfloat16 with a single query.
    dtype = torch.bfloat16 if x.q.dtype == torch.bfloat16 and group > 1 else wide
    keys = keys_of(x, dtype)
    element, tokens = x.element[keys.order, None, None], keys.tokens
    if x.block_table is not None:
        size, n_pages = x.k.shape[1], x.k.shape[0]
        element = x.block_table[element, tokens // size].long().clamp_(0, n_pages - 1)
        tokens = tokens % size
    k = GatheredKeys("k", x.k, element, heads, tokens, Scratch(dtype, buffers), None)
    v = GatheredKeys("v", x.v, element, heads, tokens, k.scratch, k)
    mask = keys.mask.expand(-1, n_heads, -1).reshape(-1, 1, 1, keys.mask.shape[2])
    q = x.q[keys.order].to(dtype).reshape(-1, 1, group, x.q.shape[2])  # heads of a key list follow each other
    out = torch.empty(q.shape, dtype=dtype, device="cpu")
    lse = torch.empty(q.shape[:3], dtype=wide, device="cpu")
    start = 0
    while start < q.shape[0]:
        n_keys = keys.n_keys[start // n_heads]
        n_pairs = max(1, MAX_ELEMENTS * torch.get_num_threads() // (n_keys * q.shape[3]))
        pairs = slice(start, start + n_pairs)
        part_mask = mask[pairs, :, :, :n_keys]
        out[pairs], lse[pairs] = fused_kernel.attention(
            q[pairs], k.gather(pairs, n_keys), v.gather(pairs, n_keys), part_mask, x.softmax_scale
        )
        start += n_pairs
    sees_none = mask[..., 0] == -torch.inf  # the first key is only hidden where all are
    out.masked_fill_(sees_none.unsqueeze(-1), 0.0)
    lse.masked_fill_(sees_none, -torch.inf)
    made = torch.empty(x.q.shape, dtype=x.q.dtype, device="cpu")
    made_lse = torch.empty(x.q.shape[:2], dtype=wide, device="cpu")
    made[keys.order] = out.view(x.q.shape).to(x.q.dtype)
    made_lse[keys.order] = lse.view(x.q.shape[:2])
    return made, made_lse


def keys_of(queries: SingleQueries, dtype: torch.dtype) -> Keys:
    """The keys that every query sees, and a mask in `dtype`."""
    x, grid, size = queries, queries.grid, queries.grid.block_size
    end = x.kv_len.clamp(max=grid.n_cols * size)
    if x.is_causal:
        end = torch.minimum(end, x.position + 1)
    row = torch.div(x.position, size, rounding_mode="floor") - grid.first_row
    in_layout = (row >= 0) & (row < grid.n_rows)
    first_list = x.layout_element * (x.layout_heads * grid.n_rows) + row.clamp(0, grid.n_rows - 1)
    lists = first_list[:, None] + cached_arange(x.layout_heads) * grid.n_rows
    starts, stops = x.rows.indptr[lists].long(), x.rows.indptr[lists + 1].long()
    n_blocks = (stops - starts) * in_layout[:, None]  # (n, layout_heads)
    longest, order = n_blocks.amax(1).sort(descending=True)
    n_keys = [max(1, n) * size for n in longest.tolist()]
    if not n_keys:
        return Keys(order, order.view(0, 1, 1), torch.zeros(0, 1, 1, dtype=dtype, device="cpu"), n_keys)

    n_blocks, starts = n_blocks[order, :, None], starts[order, :, None]
    end, kv_start = end[order, None, None], x.kv_start[order, None, None]
    place = cached_arange(n_keys[0] // size)
    first = x.rows.indices[(starts + place).clamp_(max=x.rows.indices.numel() - 1)].long() * size
    is_hidden = (place >= n_blocks) | (first >= end)
    # the first block stands for hidden ones, the last visible key of a block for those behind the end
    tokens = torch.where(is_hidden, first[:, :, :1], first).unsqueeze(-1) + cached_arange(size)
    last = (end - 1).unsqueeze(-1)
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device="cpu").masked_fill_(is_hidden, -torch.inf)
    mask = mask.unsqueeze(-1).masked_fill(tokens > last, -torch.inf).flatten(2)
    tokens = tokens.clamp_(max=last).add_(kv_start.unsqueeze(-1)).clamp_(min=0).flatten(2)
    n_lists = max(x.num_kv_heads, x.layout_heads)
    if 1 < x.layout_heads < n_lists:
        tokens, mask = (each.repeat_interleave(n_lists // x.layout_heads, 1) for each in (tokens, mask))
    return Keys(order, tokens, mask, n_keys)
