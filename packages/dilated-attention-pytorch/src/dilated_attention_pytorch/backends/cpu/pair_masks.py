"""What is added to the scores of the pairs of some tiles, for the fused kernel: masks inside blocks, alibi, attn_bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ...layout.lists import BlockMasks
from ..problem import AttentionProblem
from .tiles import Tiles


def changes_pairs(problem: AttentionProblem) -> bool:
    """Whether a problem has any of it."""
    p = problem
    return p.block_masks is not None or p.alibi_slopes is not None or p.attn_bias is not None


def pair_mask(
    problem: AttentionProblem, tiles: Tiles, keys: Tensor, batches: range, dtype: torch.dtype
) -> Tensor:
    """(T, 1 or n_kv_heads, group * height, n_keys) for the tiles of some batch elements; keys (R, n_keys)."""
    p, n_batches, n_tiles = problem, len(batches), keys.shape[0]
    query, key = tiles.queries[:, None, :, None], keys[:, None, None]  # of (R, n_heads, height, n_keys)
    head = tiles.heads[:, :, None, None]
    total = torch.zeros(1, 1, 1, 1, 1, dtype=dtype, device="cpu")  # (batches, R, n_heads, height, n_keys)
    if p.alibi_slopes is not None:
        distance = (query + p.q_offset - key).abs_().to(dtype)
        total = (distance * -p.alibi_slopes.to(dtype)[head])[None]
    if p.attn_bias is not None:
        batch = torch.arange(batches.start, batches.stop, device="cpu").view(-1, 1, 1, 1, 1)
        batch = batch if p.attn_bias.shape[0] > 1 else batch[:1] * 0
        of_head = head if p.attn_bias.shape[1] > 1 else head[:1, :1] * 0
        total = total + p.attn_bias[batch, of_head, query, key]
    if p.block_masks is not None:
        hidden = hidden_inside(p.block_masks, tiles, keys.shape[1])
        total = total.masked_fill(hidden[None, :, None], -torch.inf)
    heads = total.shape[2]
    total = total.to(dtype).expand(n_batches, n_tiles, heads, tiles.height, keys.shape[1]).flatten(0, 1)
    by_group = total.unsqueeze(2).expand(-1, -1, tiles.group, -1, -1)
    if heads > 1:
        by_group = total.unflatten(1, (-1, tiles.group))
    return by_group.flatten(2, 3)


def hidden_inside(masks: BlockMasks, tiles: Tiles, n_keys: int) -> Tensor:
    """The pairs that the masks inside blocks hide, bool (R, height, n_keys)."""
    mask_id = masks.ids[tiles.block_ids]  # (R, n)
    n_tiles, n, size = *mask_id.shape, tiles.block_size
    if masks.table.shape[0] == 0:
        return torch.zeros(n_tiles, tiles.height, n_keys, dtype=torch.bool, device="cpu")
    row = torch.arange(tiles.lead, tiles.lead + tiles.height, device="cpu")
    words = masks.table[mask_id.clamp(min=0)[:, None], row[:, None]]  # (R, height, n, words)
    words = words.masked_fill_((mask_id < 0)[:, None, :, None], -1)  # all bits: the whole block counts
    bits = words.unsqueeze(-1) >> torch.arange(min(size, 32), dtype=torch.int32, device="cpu")
    return ((bits & 1) == 0).view(n_tiles, tiles.height, n * size)[:, :, :n_keys]
