"""Scores of a chunk: the scaled products, all that is added to them, and -inf for hidden keys; and its dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dropout import dropout_keep, keep_scale
from .chunking import Chunk, Chunking


def scores_of(chunking: Chunking, chunk: Chunk, q: Tensor, k: Tensor, slope: Tensor | None = None) -> Tensor:
    """Scores (R, height, n * width) of q (R, height, dim) and k (R, n * width, dim).

    `slope`, of the same shape, becomes the derivative of the softcap.
    """
    p, (n_tiles, n) = chunking.problem, chunk.slots.shape
    scores = chunking.scratch.take("scores", n_tiles, chunking.height, n * chunking.width)
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=p.softmax_scale, out=scores)
    if p.softcap != 0.0:
        scores.div_(p.softcap).tanh_()
        if slope is not None:
            torch.square(scores, out=slope).neg_().add_(1.0)
        scores.mul_(p.softcap)
    by_piece = scores.view(n_tiles, chunking.height, n, chunking.width)
    if p.block_bias is not None:
        n_batches, n_heads, _ = p.block_bias.shape
        bias = p.block_bias[chunk.batch[:, None] % n_batches, chunk.head[:, None] % n_heads, chunk.block_ids]
        by_piece += bias[:, None, :, None]
    if p.alibi_slopes is not None or p.attn_bias is not None:
        add_biases_of_pairs(chunking, chunk, scores)
    hide_keys(chunking, chunk, by_piece.transpose(1, 2))
    return scores


def add_biases_of_pairs(chunking: Chunking, chunk: Chunk, scores: Tensor) -> None:
    """Add alibi and attn_bias, of which only the pairs of the chunk are read."""
    p = chunking.problem
    key = chunking.keys_of(chunk.first_keys).flatten(1)[:, None]  # (R, 1, n * width)
    if p.alibi_slopes is not None:
        distance = (chunk.position[:, :, None] - key).abs_()
        scores.addcmul_(distance.to(scores.dtype), -p.alibi_slopes.to(scores.dtype)[chunk.head, None, None])
    if p.attn_bias is not None:
        n_batches, n_heads, _, _ = p.attn_bias.shape
        batch, head = chunk.batch % n_batches, chunk.head % n_heads
        # pairs of a tile or a block that are outside the tensors read others; they are hidden or not used
        query = (chunk.position - p.q_offset).clamp_(0, p.q_len - 1)
        bias = p.attn_bias[
            batch[:, None, None], head[:, None, None], query[:, :, None], key.clamp(max=p.kv_len - 1)
        ]
        scores.add_(bias).masked_fill_(bias.isneginf(), -torch.inf)


def hide_keys(chunking: Chunking, chunk: Chunk, scores: Tensor) -> None:
    """Set hidden keys to -inf in scores (R, n, height, width); only pieces with hidden keys are touched."""
    p, first = chunking.problem, chunk.first_keys
    partial = torch.zeros_like(first, dtype=torch.bool)
    if p.is_causal:
        partial |= first + (chunking.width - 1) * chunking.stride > chunk.position[:, :1]
    if chunking.hidden_slots is not None:
        partial |= chunking.hidden_slots[chunk.batch[:, None], chunk.slots]
    if p.block_masks is not None:
        partial |= p.block_masks.ids[chunk.block_ids] >= 0
    tile, piece = partial.nonzero(as_tuple=True)  # (T,)
    if tile.numel() == 0:
        return
    hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device="cpu")  # below: (T, height, width)
    if p.is_causal:
        hidden = chunking.keys_of(first[tile, piece])[:, None, :] > chunk.position[tile][:, :, None]
    if chunking.hidden is not None:
        hidden = hidden | chunking.hidden[chunk.batch[tile], chunk.slots[tile, piece]][:, None, :]
    if p.block_masks is not None:
        hidden = hidden | hidden_inside_blocks(chunking, chunk, tile, piece)
    scores[tile, piece] = scores[tile, piece].masked_fill(hidden, -torch.inf)


def hidden_inside_blocks(chunking: Chunking, chunk: Chunk, tile: Tensor, piece: Tensor) -> Tensor:
    """The pairs that the masks inside blocks hide, bool (T, height, width)."""
    masks, size = chunking.problem.block_masks, chunking.problem.block_size
    assert masks is not None
    mask_id = masks.ids[chunk.block_ids[tile, piece]]
    row = chunk.position[tile] % size
    key = chunking.keys_of(chunk.first_keys[tile, piece]) % size
    if masks.table.shape[0] == 0:
        return torch.zeros(tile.numel(), row.shape[1], key.shape[1], dtype=torch.bool, device="cpu")
    words = masks.table[mask_id.clamp(min=0)[:, None], row]  # (T, height, words)
    key = key[:, None].expand(-1, row.shape[1], -1)
    bits = words.gather(2, key // 32) >> (key % 32).to(torch.int32)
    return ((bits & 1) == 0) & (mask_id >= 0)[:, None, None]


def dropout_factor(chunking: Chunking, chunk: Chunk, first_sequence: int) -> Tensor:
    """0 or the inverse of the kept share per weight, (R, height, n * width); `first_sequence` of the call is the problem's."""
    p = chunking.problem
    assert p.seed is not None
    key = chunking.keys_of(chunk.first_keys).flatten(1)
    sequence_head = (chunk.batch + first_sequence) * p.num_heads + chunk.head
    keep = dropout_keep(
        p.seed, p.dropout_p, key[:, None, :], chunk.position[:, :, None], sequence_head[:, None, None]
    )
    return keep.to(chunking.dtype).mul_(keep_scale(p.dropout_p))
