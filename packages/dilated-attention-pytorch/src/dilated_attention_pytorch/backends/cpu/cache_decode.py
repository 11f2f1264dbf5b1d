"""Decoding from pages, element by element: only the keys that the list of a query's row names are read.

For what single_queries.py does not serve: several queries, or what changes scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..decode_problem import DecodeProblem


class Queries(NamedTuple):
    """Queries of one batch element in one row of the layout."""

    element: int
    row: int
    first: int
    """The first query of them."""
    position: Tensor
    """int64 (queries,)."""
    kv_start: int
    """The token at position 0."""
    kv_len: int


def queries_of(problem: DecodeProblem) -> Iterator[Queries]:
    """All queries that are in a row of the layout."""
    p, x, size = problem, problem.inputs, problem.block_size
    starts = [0] * p.batch if x.kv_starts is None else x.kv_starts.tolist()
    for element, (length, start) in enumerate(zip(x.cache_lengths.tolist(), starts, strict=True)):
        end = min(max(length, 0), p.max_len)
        start = min(max(start, 0), end)
        first_position = length - start - p.q_len
        first = max(0, -first_position)
        while first < p.q_len:
            block = (first_position + first) // size
            stop = min(p.q_len, (block + 1) * size - first_position)
            if 0 <= block - p.grid.first_row < p.grid.n_rows:
                position = torch.arange(first_position + first, first_position + stop, device="cpu")
                yield Queries(element, block - p.grid.first_row, first, position, start, end - start)
            first = stop


def forward(problem: DecodeProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a problem on the CPU."""
    p, q = problem, problem.inputs.q
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=wide, device="cpu")
    lse = torch.full((p.batch, p.num_heads, p.q_len), -torch.inf, dtype=wide, device="cpu")
    heads_per_list = p.num_heads // p.layout_heads
    for queries in queries_of(p):
        rows = slice(queries.first, queries.first + queries.position.numel())
        for layout_head in range(p.layout_heads):
            heads = slice(layout_head * heads_per_list, (layout_head + 1) * heads_per_list)
            part_out, part_lse = attend(p, queries, layout_head, q[queries.element, rows, heads].to(wide))
            out[queries.element, rows, heads], lse[queries.element, heads, rows] = part_out, part_lse
    return out.to(q.dtype), lse


def attend(p: DecodeProblem, queries: Queries, layout_head: int, q: Tensor) -> tuple[Tensor, Tensor]:
    """out (queries, heads, v_head_dim) and lse (heads, queries) of the heads of one list; q: (queries, heads, head_dim)."""
    x, size, element, position = p.inputs, p.block_size, queries.element, queries.position[:, None]
    layout_element = element if p.layout_batch > 1 else 0
    i_list = (layout_element * p.layout_heads + layout_head) * p.grid.n_rows + queries.row
    begin, end = p.rows.indptr[i_list : i_list + 2].tolist()
    key = (p.rows.indices[begin:end].long()[:, None] * size + torch.arange(size, device="cpu")).flatten()
    block_id = p.rows.block_ids[begin:end].long().repeat_interleave(size)
    is_read = (key < queries.kv_len) & (key <= position[-1])
    key, block_id = key[is_read], block_id[is_read]

    n_heads = q.shape[1]
    head0 = layout_head * n_heads
    group = p.num_heads // p.num_kv_heads
    kv_heads = slice(head0 // group, (head0 + n_heads - 1) // group + 1)
    k, v = (
        cached_tokens(cache, x.block_table, element, queries.kv_start + key)[:, kv_heads].to(q.dtype)
        for cache in (x.k_cache, x.v_cache)
    )
    by_kv_head = q.unflatten(1, (k.shape[1], -1))  # (queries, kv heads, group, head_dim)
    scores = torch.einsum("ihgd,jhd->hgij", by_kv_head, k).flatten(0, 1) * p.softmax_scale
    if p.softcap != 0.0:
        scores = p.softcap * (scores / p.softcap).tanh()
    heads = slice(head0, head0 + n_heads)
    if x.alibi_slopes is not None:
        scores = scores - x.alibi_slopes[heads].to(q.dtype)[:, None, None] * (position - key)
    scores = scores.masked_fill(~is_visible(p, key, position, block_id), -torch.inf)
    lse = scores.logsumexp(-1)
    sees_none = lse == -torch.inf
    if x.sinks is not None:
        lse = torch.logaddexp(lse, x.sinks[heads].to(q.dtype)[:, None]).masked_fill(sees_none, -torch.inf)
    weights = (scores - lse.masked_fill(sees_none, 0.0)[..., None]).exp()
    out = torch.einsum("hgij,jhd->ihgd", weights.unflatten(0, (k.shape[1], -1)), v)
    return out.flatten(1, 2), lse


def cached_tokens(cache: Tensor, block_table: Tensor | None, element: int, tokens: Tensor) -> Tensor:
    """Tokens of a batch element, (tokens, num_kv_heads, head_dim)."""
    if block_table is None:
        return cache[element, tokens]
    size = cache.shape[1]
    pages = block_table[element, tokens // size].long().clamp(0, max(0, cache.shape[0] - 1))
    return cache[pages, tokens % size]


def is_visible(p: DecodeProblem, key: Tensor, position: Tensor, block_id: Tensor) -> Tensor:
    """Bool (queries, keys); position: (queries, 1), block_id: (keys,)."""
    visible = key <= position
    if p.block_masks is None or p.block_masks.table.shape[0] == 0:
        return visible
    mask_id = p.block_masks.ids[block_id].long()
    place = key % p.block_size
    word = p.block_masks.table[mask_id.clamp(min=0), position % p.block_size, place // 32]
    return visible & ((mask_id < 0) | ((word >> (place % 32)) & 1).bool())
