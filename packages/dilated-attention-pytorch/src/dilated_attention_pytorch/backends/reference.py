"""The definition of the attention: a dense mask and one softmax per query. Slow, differentiable, plain PyTorch."""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout.lists import unpacked_masks
from ..sequences import Sequences, sequences_of_batch
from .decode_problem import DecodeProblem
from .dropout import dropout_keep, keep_scale
from .problem import AttentionProblem


def block_entries(problem: AttentionProblem) -> Tensor:
    """Block id of every block pair of the layout, -1 where inactive; int64 (layout_batch, layout_heads, n_rows, n_cols)."""
    p, n_rows, n_cols = problem, problem.grid.n_rows, problem.grid.n_cols
    shape = (p.layout_batch, p.layout_heads, n_rows, n_cols)
    if p.entries is not None:
        return p.entries.view(shape)
    n_lists = p.layout_batch * p.layout_heads * n_rows
    owner = p.rows.owners() // len(p.rates)
    # one more list, for what is behind the last one
    entries = torch.full((n_lists + 1, n_cols), -1, dtype=torch.int64, device=p.q.device)
    entries[owner, torch.where(owner < n_lists, p.rows.indices, 0).long()] = p.rows.block_ids.long()
    return entries[:n_lists].view(shape)


class Tokens(NamedTuple):
    """Of every token, int64 (batch or 1, tokens)."""

    sequence: Tensor
    """-1: of none."""
    position: Tensor


def tokens(problem: AttentionProblem) -> tuple[Tokens, Tokens]:
    """The sequences and positions of the queries and of the keys."""
    p, device = problem, problem.q.device
    query, key = torch.arange(p.q_len, device=device)[None], torch.arange(p.kv_len, device=device)[None]
    table = p.sequences
    if table is None:
        element = torch.arange(p.batch, device=device)[:, None]
        return Tokens(element.expand(-1, p.q_len), query + p.q_offset), Tokens(
            element.expand(-1, p.kv_len), key
        )
    return (
        tokens_of(table, query, "q_start", "q_len", table.column("q_position")),
        tokens_of(table, key, "kv_start", "kv_len", torch.zeros_like(table.column("kv_len"))),
    )


def tokens_of(table: Sequences, index: Tensor, start: str, length: str, first: Tensor) -> Tokens:
    """The sequences and positions of tokens; `first` is the position of the first token of every sequence."""
    within = index - table.column(start)[:, None]  # (n_sequences, tokens)
    inside = (within >= 0) & (within < table.column(length)[:, None])
    position = within + first[:, None]
    if not table.is_packed:
        element = torch.arange(table.table.shape[0], device=index.device)[:, None]
        return Tokens(torch.where(inside, element, -1), position)
    if table.table.shape[0] == 0:
        return Tokens(torch.full_like(index, -1), index)
    sequence = inside.int().argmax(0)[None]  # the only one, if any
    return Tokens(sequence.masked_fill(~inside.any(0), -1), position.gather(0, sequence))


def visible_and_bias(problem: AttentionProblem) -> tuple[Tensor, Tensor | None]:
    """Bool mask of the visible keys, broadcastable to (batch, num_heads, q_len, kv_len), and what is added to each score."""
    p, device, block_size = problem, problem.q.device, problem.block_size
    head = torch.arange(p.num_heads, device=device)[:, None, None]
    of_q, of_k = tokens(p)  # below: (batch or 1, 1, tokens, 1) and (batch or 1, 1, 1, tokens)
    sequence, query = of_q.sequence[:, None, :, None], of_q.position[:, None, :, None]
    key = of_k.position[:, None, None]
    visible = (sequence == of_k.sequence[:, None, None]) & (sequence >= 0)
    row = torch.div(query, block_size, rounding_mode="floor") - p.grid.first_row
    col = torch.div(key, block_size, rounding_mode="floor")
    inside = (row >= 0) & (row < p.grid.n_rows) & (col >= 0) & (col < p.grid.n_cols)

    # (layout_batch or batch or 1, num_heads, q_len, kv_len)
    element = sequence.clamp(min=0) if p.layout_batch > 1 else torch.zeros_like(sequence)
    layout_head = head // (p.num_heads // p.layout_heads)
    row, col = row.clamp(0, p.grid.n_rows - 1), col.clamp(0, p.grid.n_cols - 1)
    entries = block_entries(p)[element, layout_head, row, col].masked_fill(~inside, -1)
    visible = visible & (entries >= 0)
    if p.block_masks is not None and p.block_masks.ids.numel() > 0:
        mask_id = p.block_masks.ids[entries.clamp(min=0)].long()
        allowed = torch.ones_like(visible)
        if p.block_masks.table.shape[0] > 0:
            table = unpacked_masks(p.block_masks.table)
            allowed = table[mask_id.clamp(min=0), query % block_size, key % block_size]
        visible = visible & (allowed | (mask_id < 0))
    if p.is_causal:
        visible = visible & (key <= query)
    if p.dilation is not None:
        distance = (query // block_size - key // block_size).abs() * block_size
        segments = torch.tensor(p.dilation.segment_lengths[:-1], device=device, dtype=torch.int64)
        rate = torch.tensor(p.rates, device=device)[torch.bucketize(distance, segments, right=True)]
        visible = visible & (key % rate == head % rate)
    if p.key_padding_mask is not None:
        visible = visible & ~p.key_padding_mask[:, None, None, :]

    added: list[Tensor] = []
    if p.block_bias is not None:
        bias = p.block_bias.expand(-1, p.num_heads, -1)
        if bias.shape[2] == 0:  # no block is active
            bias = torch.nn.functional.pad(bias, (0, 1))
        of_sequence = sequence.clamp(min=0) if bias.shape[0] > 1 else torch.zeros_like(sequence)
        added.append(bias[of_sequence, head, entries.clamp(min=0)])
    if p.attn_bias is not None:
        added.append(p.attn_bias)
    dtype = torch.promote_types(p.q.dtype, torch.float32)
    if p.alibi_slopes is not None:
        added.append(-p.alibi_slopes.to(dtype)[:, None, None] * (query - key).abs())
    if not added:
        return visible, None
    total = functools.reduce(torch.add, (x.to(dtype) for x in added))
    hidden = total == -torch.inf
    return visible & ~hidden, total.masked_fill(hidden, 0.0)


def padding(problem: AttentionProblem) -> Tensor | None:
    """Bool (batch, kv_len), True for keys that no query may see; None if there are none."""
    p = problem
    parts = [] if p.key_padding_mask is None else [p.key_padding_mask]
    if p.sequences is not None:
        parts.append(tokens(p)[1].sequence < 0)
    return functools.reduce(torch.logical_or, parts) if parts else None


def zero_padding(problem: AttentionProblem, x: Tensor) -> Tensor:
    """k or v with zeros for the padded keys: memory past the end of a cache may hold NaN, and 0 * NaN is NaN."""
    padded = padding(problem)
    return x if padded is None else x.masked_fill(padded[:, :, None, None], 0.0)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Disable autocast, which would compute the matrix products in half precision."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def scores_of(problem: AttentionProblem, q: Tensor, k: Tensor) -> Tensor:
    """softmax_scale * q k^T, capped, (batch, num_heads, q_len, kv_len).

    Scores of a key that is not finite are added as constants: in the backward, the zero gradients of queries that do
    not see the key would otherwise be multiplied by NaN or infinity.
    """
    k = k.repeat_interleave(problem.num_heads // problem.num_kv_heads, dim=2)
    not_finite = ~k.isfinite().all(-1, keepdim=True)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.masked_fill(not_finite, 0.0))
    constant = torch.einsum("bihd,bjhd->bhij", q.detach(), k.detach())
    scores = (scores + constant.masked_fill(~not_finite.permute(0, 2, 3, 1), 0.0)) * problem.softmax_scale
    return scores if problem.softcap == 0.0 else problem.softcap * (scores / problem.softcap).tanh()


def weighted_values(problem: AttentionProblem, weights: Tensor, visible: Tensor, v: Tensor) -> Tensor:
    """weights v, (batch, q_len, num_heads, v_head_dim).

    A value that is not finite only affects queries that see it: 0 * NaN would spread it to all of them.
    """
    v = v.repeat_interleave(problem.num_heads // problem.num_kv_heads, dim=2)
    not_finite = ~v.isfinite()
    out = torch.einsum("bhij,bjhd->bihd", weights, v.masked_fill(not_finite, 0.0))
    is_reached = (
        torch.einsum("bhij,bjhd->bihd", visible.to(v.dtype).expand_as(weights), not_finite.to(v.dtype)) > 0
    )
    constant = torch.einsum("bhij,bjhd->bihd", weights.detach(), v.detach().masked_fill(~not_finite, 0.0))
    return out + constant.masked_fill(~is_reached, 0.0)


def attention_weights(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """Weights after dropout (batch, num_heads, q_len, kv_len) and lse (batch, num_heads, q_len), float32 or float64."""
    with without_autocast(problem.q.device):
        weights, lse, _ = weights_lse_and_visible(problem)
    return weights, lse


def weights_lse_and_visible(problem: AttentionProblem) -> tuple[Tensor, Tensor, Tensor]:
    """As `attention_weights`, and the mask of the visible keys."""
    dtype = torch.promote_types(problem.q.dtype, torch.float32)
    visible, bias = visible_and_bias(problem)
    scores = scores_of(problem, problem.q.to(dtype), zero_padding(problem, problem.k).to(dtype))
    if bias is not None:
        scores = scores + bias.to(dtype)
    sees_none = ~visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~visible, -torch.inf).masked_fill(sees_none, 0.0)
    # not exp(scores - lse): beside scores of -1e9 the log of the denominator has no digits
    largest = scores.detach().logsumexp(-1, keepdim=True)  # about the largest, and defined without keys
    if problem.sinks is not None:
        sinks = problem.sinks.to(dtype)[:, None, None]
        largest = torch.maximum(largest, sinks.detach())
    weights = (scores - largest).exp()
    total = weights.sum(-1, keepdim=True)
    if problem.sinks is not None:
        total = total + (sinks - largest).exp()
    lse = largest + total.log()
    weights = (weights / total).masked_fill(sees_none, 0.0)
    if problem.dropout_p > 0.0:
        assert problem.seed is not None
        of_q, of_k = tokens(problem)
        head = torch.arange(problem.num_heads, device=scores.device)[:, None, None]
        sequence_head = of_q.sequence[:, None, :, None] * problem.num_heads + head
        query, key = of_q.position[:, None, :, None], of_k.position[:, None, None]
        keep = dropout_keep(problem.seed, problem.dropout_p, key, query, sequence_head)
        weights = weights * keep * keep_scale(problem.dropout_p)
    return weights, lse.masked_fill(sees_none, -torch.inf).squeeze(-1).expand(problem.batch, -1, -1), visible


def attention_reference(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out (batch, q_len, num_heads, v_head_dim) in q's dtype, and lse (batch, num_heads, q_len)."""
    with without_autocast(problem.q.device):
        weights, lse, visible = weights_lse_and_visible(problem)
        v = zero_padding(problem, problem.v).to(weights.dtype)
        return weighted_values(problem, weights, visible, v).to(problem.q.dtype), lse


# ---- decoding


def token_bounds(problem: DecodeProblem) -> tuple[Tensor, Tensor]:
    """The first token of every element and the end of its tokens, int32 (batch,)."""
    x = problem.inputs
    end = x.cache_lengths.clamp(0, problem.max_len)
    start = torch.zeros_like(end) if x.kv_starts is None else torch.minimum(x.kv_starts.clamp(min=0), end)
    return start, end


def contiguous_cache(cache: Tensor, block_table: Tensor | None) -> Tensor:
    """The cache as (batch, max_len, num_kv_heads, head_dim)."""
    if block_table is None:
        return cache
    return cache[block_table.long().clamp(0, cache.shape[0] - 1)].flatten(1, 2)


def attention_of_caches(problem: DecodeProblem) -> AttentionProblem:
    """A decoding call as one over whole, contiguous caches."""
    p, x = problem, problem.inputs
    k, v = (contiguous_cache(cache, x.block_table) for cache in (x.k_cache, x.v_cache))
    start, end = token_bounds(p)
    q_offset = x.cache_lengths - start - p.q_len
    fixed, sequences = sequences_of_batch(x.q, p.max_len, True, q_offset, end, start)
    return AttentionProblem(
        q=x.q, k=k, v=v, grid=p.grid, layout_batch=p.layout_batch, layout_heads=p.layout_heads, rows=p.rows, cols=p.rows,
        undilated=(p.rows, p.rows), block_masks=p.block_masks, q_offset=fixed, is_causal=True,
        softmax_scale=p.softmax_scale, dropout_p=0.0, dilation=None, block_bias=None, key_padding_mask=None, seed=None,
        sequences=sequences, softcap=p.softcap, alibi_slopes=x.alibi_slopes, sinks=x.sinks,
    )  # fmt: skip


def decode_reference(problem: DecodeProblem) -> tuple[Tensor, Tensor]:
    """`attention_reference` of a decoding call: out (batch, q_len, num_heads, v_head_dim) in q's dtype, and lse (batch, num_heads, q_len)."""
    with torch.no_grad():
        return attention_reference(attention_of_caches(problem))
