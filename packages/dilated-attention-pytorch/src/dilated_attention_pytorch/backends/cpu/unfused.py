"""Everything that the fused kernel does not support, as dense batched products on the chunks of chunking.py.

Per chunk: gather keys and values, multiply, softmax, multiply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from .chunking import Chunking, Panel
from .finite import are_finite
from .scores import dropout_factor, scores_of
from .scratch import Buffers


def forward(problem: AttentionProblem, buffers: Buffers, first_sequence: int = 0) -> tuple[Tensor, Tensor]:
    p, chunking = problem, Chunking(problem, buffers)
    out = p.q.new_empty(p.batch, p.q_len, p.num_heads, p.v_head_dim)
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=chunking.dtype, device="cpu")
    for panel in chunking.panels():
        out_tiles, lse_tiles = forward_panel(chunking, panel, first_sequence)
        chunking.unpack_queries(out_tiles, out[panel.queries])
        chunking.unpack_queries(lse_tiles, lse.transpose(1, 2)[panel.queries].unsqueeze(-1))
    return out, lse


def forward_panel(chunking: Chunking, panel: Panel, first_sequence: int) -> tuple[Tensor, Tensor]:
    """out (tiles, height * v_head_dim) and lse (tiles, height)."""
    p, scratch, height = chunking.problem, chunking.scratch, chunking.height
    q = chunking.pack_queries("all q", p.q[panel.queries])
    k, v = (chunking.pack_keys(name, x[panel.keys], panel) for name, x in (("all k", p.k), ("all v", p.v)))
    v_is_finite = are_finite(v)
    out = scratch.take("all out", q.shape[0], height * p.v_head_dim).zero_()
    lse = scratch.take("all lse", q.shape[0], height).fill_(-torch.inf)
    finite = torch.finfo(chunking.dtype)
    for chunk in chunking.chunks(panel):
        n_tiles, n_keys = chunk.tiles.numel(), chunk.slots.shape[1] * chunking.width
        q_tile = scratch.gather("q", q, chunk.tiles).view(n_tiles, height, p.head_dim)
        k_tile = scratch.gather("kv", k, chunk.pieces).view(n_tiles, n_keys, p.head_dim)
        scores = scores_of(chunking, chunk, q_tile, k_tile)
        visible = None if v_is_finite else scores != -torch.inf
        largest = scores.amax(-1, keepdim=True).clamp_(min=finite.min)  # finite if a query sees no key
        weights = scores.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)  # 0 if a query sees no key, otherwise >= 1
        if p.dropout_p > 0.0:
            weights *= dropout_factor(chunking, chunk, first_sequence)
        v_tile = scratch.gather("kv", v, chunk.pieces).view(n_tiles, n_keys, p.v_head_dim)
        part = scratch.take("out", n_tiles, height, p.v_head_dim)
        if visible is None:
            torch.bmm(weights, v_tile, out=part)
        else:
            part.copy_(product_of_visible(weights, v_tile, visible))
        part.div_(total.clamp(min=finite.tiny))
        part_lse = largest.add_(total.log_())  # (R, height, 1)
        if not chunk.is_first:
            merged_lse = torch.logaddexp(lse[chunk.tiles].unsqueeze(-1), part_lse)
            share = (part_lse - merged_lse.clamp(min=finite.min)).exp_()
            part.lerp_(out[chunk.tiles].view_as(part), 1.0 - share)
            part_lse = merged_lse
        out.index_copy_(0, chunk.tiles, part.view(n_tiles, -1))
        lse.index_copy_(0, chunk.tiles, part_lse.view(n_tiles, height))
    return out, lse


def product_of_visible(weights: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """weights (R, height, n_keys) times v (R, n_keys, dim), some of which is not finite: 0 * NaN is NaN.

    What is not finite only reaches the queries that see it.
    """
    not_finite = ~v.isfinite()
    reached = torch.bmm(visible.to(v.dtype), not_finite.to(v.dtype)) > 0
    constant = torch.bmm(weights, v.masked_fill(~not_finite, 0.0)).masked_fill_(~reached, 0.0)
    return torch.bmm(weights, v.masked_fill(not_finite, 0.0)).add_(constant)


def backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Buffers,
    first_sequence: int = 0,
    grad_bias: Tensor | None = None,
) -> Gradients:
    """Gradients; that of block_bias is added to `grad_bias`, if given."""
    p, chunking = problem, Chunking(problem, buffers)
    grads = [torch.empty(x.shape, dtype=x.dtype, device="cpu") for x in (p.q, p.k, p.v)]
    if p.block_bias is not None and grad_bias is None:
        grad_bias = torch.zeros(p.block_bias.shape, dtype=chunking.dtype, device="cpu")
    for panel in chunking.panels():
        queries = panel.queries
        panel_lse, d_out = lse.transpose(1, 2)[queries], grad_out[queries]
        delta = (d_out.to(chunking.dtype) * out[queries]).sum(-1, keepdim=True)  # (batches, q_len, heads, 1)
        if grad_lse is not None:
            delta -= grad_lse.transpose(1, 2)[queries].unsqueeze(-1)
        # A query that sees no key gets the weights exp(score - inf) = 0, whatever its gradient.
        sees_none = (panel_lse == -torch.inf).unsqueeze(-1)
        if bool(sees_none.any()):
            delta, d_out = delta.masked_fill(sees_none, 0.0), d_out.masked_fill(sees_none, 0.0)
        minus_lse = -panel_lse.unsqueeze(-1).masked_fill(sees_none, torch.inf)
        d_q, d_k, d_v = backward_panel(
            chunking,
            panel,
            first_sequence,
            chunking.pack_queries("all d out", d_out),
            chunking.pack_queries("all delta", delta),
            chunking.pack_queries("all lse", minus_lse, fill=-torch.inf),
            grad_bias,
        )
        chunking.unpack_queries(d_q, grads[0][queries])
        chunking.unpack_keys(d_k, grads[1][panel.keys])
        chunking.unpack_keys(d_v, grads[2][panel.keys])
    return Gradients(grads[0], grads[1], grads[2], grad_bias)


def backward_panel(
    chunking: Chunking,
    panel: Panel,
    first_sequence: int,
    d_out: Tensor,
    delta: Tensor,
    minus_lse: Tensor,
    grad_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the packed q, k and v; adds to grad_bias.

    delta is sum(out * d_out) - d_lse per query.
    """
    p, scratch, height = chunking.problem, chunking.scratch, chunking.height
    q = chunking.pack_queries("all q", p.q[panel.queries])
    k, v = (chunking.pack_keys(name, x[panel.keys], panel) for name, x in (("all k", p.k), ("all v", p.v)))
    is_finite = are_finite(k, v)
    d_q, d_k, d_v = (
        scratch.take(name, *x.shape).zero_() for name, x in (("all d q", q), ("all d k", k), ("all d v", v))
    )
    for chunk in chunking.chunks(panel):
        n_tiles, n = chunk.slots.shape
        n_keys, pieces = n * chunking.width, chunk.pieces.flatten()
        q_tile = scratch.gather("q", q, chunk.tiles).view(n_tiles, height, p.head_dim)
        k_tile = scratch.gather("k", k, pieces).view(n_tiles, n_keys, p.head_dim)
        v_tile = scratch.gather("v", v, pieces).view(n_tiles, n_keys, p.v_head_dim)
        d_out_tile = scratch.gather("d out", d_out, chunk.tiles).view(n_tiles, height, p.v_head_dim)

        slope = scratch.take("slope", n_tiles, height, n_keys) if p.softcap != 0.0 else None
        scores = scores_of(chunking, chunk, q_tile, k_tile, slope)
        tile_lse = minus_lse[chunk.tiles].unsqueeze(-1)
        # also from rows of the tile that are no queries
        hidden = None if is_finite else (scores == -torch.inf) | (tile_lse == -torch.inf)
        weights = scores.add_(tile_lse).exp_()
        d_scores = scratch.take("d scores", n_tiles, height, n_keys)
        torch.bmm(d_out_tile, v_tile.transpose(1, 2), out=d_scores)  # gradient of the weights after dropout
        if hidden is not None:  # 0 * NaN is NaN: what is not finite only reaches the queries that see it
            weights.masked_fill_(hidden, 0.0)
            d_scores.masked_fill_(hidden, 0.0)
            k_tile.masked_fill_(~k_tile.isfinite(), 0.0)
        dropped = weights
        if p.dropout_p > 0.0:
            factor = dropout_factor(chunking, chunk, first_sequence)
            d_scores *= factor
            dropped = weights * factor
        torch.bmm(dropped.transpose(1, 2), d_out_tile, out=v_tile)  # reuses the memory of v_tile
        d_v.index_add_(0, pieces, v_tile.view(pieces.numel(), -1))
        d_scores.sub_(delta[chunk.tiles].unsqueeze(-1)).mul_(weights)
        if grad_bias is not None:
            n_batches, n_heads, n_ids = grad_bias.shape
            per_piece = d_scores.view(n_tiles, height, n, chunking.width).sum((1, 3))
            of_head = chunk.batch % n_batches * n_heads + chunk.head % n_heads
            index = of_head[:, None] * n_ids + chunk.block_ids
            grad_bias.view(-1).index_add_(0, index.flatten(), per_piece.flatten())
        if slope is not None:
            d_scores.mul_(slope if hidden is None else slope.masked_fill_(hidden, 0.0))
        d_q_tile = scratch.take("d q", n_tiles, height, p.head_dim)
        torch.baddbmm(d_q_tile, d_scores, k_tile, beta=0, alpha=p.softmax_scale, out=d_q_tile)
        d_q.index_add_(0, chunk.tiles, d_q_tile.view(n_tiles, -1))
        torch.baddbmm(k_tile, d_scores.transpose(1, 2), q_tile, beta=0, alpha=p.softmax_scale, out=k_tile)
        d_k.index_add_(0, pieces, k_tile.view(pieces.numel(), -1))
    return d_q, d_k, d_v
