"""The definition: a dense mask, one softmax over everything a query may see. Slow, plain PyTorch, differentiable."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .dropout import dropout_keep
from .problem import AttentionProblem


def block_entries(problem: AttentionProblem) -> Tensor:
    """Place in the row lists of every block pair, -1 where inactive; int64 (layout_heads, n_rows, n_cols)."""
    if problem.entries is not None:
        return problem.entries
    lists, n_classes = problem.rows, len(problem.rates)
    owner = lists.owners() // n_classes
    shape = (problem.layout_heads, problem.n_rows, problem.n_cols)
    entries = torch.full(shape, -1, dtype=torch.int64, device=problem.q.device)
    entries[owner // problem.n_rows, owner % problem.n_rows, lists.indices.long()] = lists.block_ids.long()
    return entries


def visible_and_bias(problem: AttentionProblem) -> tuple[Tensor, Tensor | None]:
    """Bool mask, broadcastable to (batch, num_heads, q_len, kv_len), and the bias of every token pair."""
    device, block_size = problem.q.device, problem.block_size
    head = torch.arange(problem.num_heads, device=device)
    position = torch.arange(problem.q_len, device=device) + problem.q_offset
    key = torch.arange(problem.kv_len, device=device)
    row, col = position // block_size - problem.first_row, key // block_size

    of_layout = head // (problem.num_heads // problem.layout_heads)
    entries = block_entries(problem)[of_layout][:, row][:, :, col]  # (num_heads, q_len, kv_len)
    visible = entries >= 0
    if problem.is_causal:
        visible = visible & (key <= position[:, None])
    if problem.dilation is not None:
        distance = (position[:, None] // block_size - col).abs() * block_size
        segments = torch.tensor(problem.dilation.segment_lengths[:-1], device=device, dtype=torch.int64)
        rate = torch.tensor(problem.rates, device=device)[torch.bucketize(distance, segments, right=True)]
        visible = visible & (key % rate == head[:, None, None] % rate)
    visible = visible[None]
    if problem.kv_lengths is not None:
        visible = visible & (key < problem.kv_lengths[:, None, None, None])
    if problem.key_padding_mask is not None:
        visible = visible & ~problem.key_padding_mask[:, None, None, :]

    if problem.block_bias is None:
        return visible, None
    bias = problem.block_bias.expand(-1, problem.num_heads, -1)
    place = entries.clamp(min=0).flatten(1).expand(bias.shape[0], -1, -1)
    bias = bias.gather(2, place).unflatten(2, (problem.q_len, problem.kv_len))
    hides = bias == -torch.inf
    return visible & ~hides, bias.masked_fill(hides, 0.0)


def without_padding(problem: AttentionProblem, x: Tensor) -> Tensor:
    """k or v with zeros for the padded keys: a cache may hold anything behind its end, and 0 * NaN is NaN."""
    padded = torch.zeros(problem.batch, problem.kv_len, dtype=torch.bool, device=x.device)
    if problem.kv_lengths is not None:
        padded = torch.arange(problem.kv_len, device=x.device) >= problem.kv_lengths[:, None]
    if problem.key_padding_mask is not None:
        padded = padded | problem.key_padding_mask
    return x.masked_fill(padded[:, :, None, None], 0.0)


def exact_products(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would compute the products in half precision."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def scores_of(problem: AttentionProblem, q: Tensor, k: Tensor) -> Tensor:
    """q k^T scaled, (batch, num_heads, q_len, kv_len).

    A key that is not finite is added as a constant: multiplied by the zero gradients of the rows that do not see it,
    it would make theirs NaN as well.
    """
    k = k.repeat_interleave(problem.num_heads // problem.num_kv_heads, dim=2)
    bad = ~k.isfinite().all(-1, keepdim=True)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.masked_fill(bad, 0.0))
    raw = torch.einsum("bihd,bjhd->bhij", q.detach(), k.detach())
    return (scores + raw.masked_fill(~bad.permute(0, 2, 3, 1), 0.0)) * problem.softmax_scale


def weighted_values(problem: AttentionProblem, weights: Tensor, visible: Tensor, v: Tensor) -> Tensor:
    """weights v, (batch, q_len, num_heads, v_head_dim); values that are not finite reach the rows that see them only."""
    v = v.repeat_interleave(problem.num_heads // problem.num_kv_heads, dim=2)
    bad = ~v.isfinite()
    out = torch.einsum("bhij,bjhd->bihd", weights, v.masked_fill(bad, 0.0))
    seen = torch.einsum("bhij,bjhd->bihd", visible.to(v.dtype).expand_as(weights), bad.to(v.dtype)) > 0
    raw = torch.einsum("bhij,bjhd->bihd", weights.detach(), v.detach().masked_fill(~bad, 0.0))
    return out + raw.masked_fill(~seen, 0.0)


def attention_weights(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """Weights after dropout (batch, num_heads, q_len, kv_len) and lse (batch, num_heads, q_len), at least float32."""
    with exact_products(problem.q.device):
        weights, lse, _ = weights_lse_and_visible(problem)
    return weights, lse


def weights_lse_and_visible(problem: AttentionProblem) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(problem.q.dtype, torch.float32)
    visible, bias = visible_and_bias(problem)
    scores = scores_of(problem, problem.q.to(dtype), without_padding(problem, problem.k).to(dtype))
    if bias is not None:
        scores = scores + bias.to(dtype)
    sees_none = ~visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~visible, -torch.inf).masked_fill(sees_none, 0.0)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(sees_none, 0.0)
    if problem.dropout_p > 0.0:
        assert problem.seed is not None
        device = scores.device
        batch_head = torch.arange(problem.batch * problem.num_heads, device=device)
        batch_head = batch_head.view(problem.batch, problem.num_heads, 1, 1)
        query, key = torch.arange(problem.q_len, device=device), torch.arange(problem.kv_len, device=device)
        keep = dropout_keep(problem.seed, problem.dropout_p, key, query[:, None], batch_head)
        weights = weights * keep / (1.0 - problem.dropout_p)
    return weights, lse.masked_fill(sees_none, -torch.inf).squeeze(-1).expand(problem.batch, -1, -1), visible


def attention_reference(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out (batch, q_len, num_heads, v_head_dim) in q's dtype, and lse."""
    with exact_products(problem.q.device):
        weights, lse, visible = weights_lse_and_visible(problem)
        v = without_padding(problem, problem.v).to(weights.dtype)
        return weighted_values(problem, weights, visible, v).to(problem.q.dtype), lse
