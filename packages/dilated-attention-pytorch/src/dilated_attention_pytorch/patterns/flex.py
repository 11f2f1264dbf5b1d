"""To and from FlexAttention's BlockMask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

if TYPE_CHECKING:
    from .layout import BlockLayout


def listed(counts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) of one head's left-packed lists (n_rows,), (n_rows, width)."""
    valid = torch.arange(columns.shape[-1], device=columns.device) < counts[:, None]
    rows = valid.nonzero(as_tuple=True)[0]
    return rows, columns[valid].long()


def pairs_of_block_mask(
    block_mask: BlockMask, allow_partial: bool
) -> tuple[int, int, int, list[tuple[Tensor, Tensor]]]:
    """q_len, kv_len, block_size and per head the active (rows, columns)."""
    q_block, kv_block = block_mask.BLOCK_SIZE
    if q_block != kv_block:
        raise ValueError(f"block_mask must have square blocks, got BLOCK_SIZE {block_mask.BLOCK_SIZE}")
    partial_counts = block_mask.kv_num_blocks
    if partial_counts.shape[0] != 1:
        raise ValueError(
            f"block_mask must have batch size 1, got {partial_counts.shape[0]}; make one layout per batch element"
        )
    n_partial = int(partial_counts.sum())
    if n_partial and not allow_partial:
        raise ValueError(
            f"block_mask has {n_partial} partial blocks, whose mask_mod a BlockLayout cannot hold; pass "
            "allow_partial=True to keep them whole, and is_causal=True to the attention if the mask was causal"
        )
    heads = []
    for i_head in range(partial_counts.shape[1]):
        parts = [listed(partial_counts[0, i_head], block_mask.kv_indices[0, i_head])]
        if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
            parts.append(
                listed(block_mask.full_kv_num_blocks[0, i_head], block_mask.full_kv_indices[0, i_head])
            )
        heads.append((torch.cat([rows for rows, _ in parts]), torch.cat([cols for _, cols in parts])))
    q_len, kv_len = block_mask.seq_lengths
    return int(q_len), int(kv_len), int(q_block), heads


def packed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (1, heads, n_rows) and left-packed columns (1, heads, n_rows, n_cols) of a dense block mask."""
    counts = dense.sum(-1, dtype=torch.int32)
    columns = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None], columns[None]


def block_mask_of(layout: BlockLayout) -> BlockMask:
    """A BlockMask with the layout's blocks; the diagonal of a causal layout is partial, with a causal mask_mod."""
    grid = layout.grid
    if grid.q_offset % grid.block_size:
        raise ValueError(
            f"q_len {grid.q_len} and kv_len {grid.kv_len} of a causal layout must differ by whole blocks of "
            f"{grid.block_size} for a BlockMask, whose rows start at the first query"
        )
    if grid.first_row < 0:
        raise ValueError(
            f"q_len {grid.q_len} must not exceed kv_len {grid.kv_len} of a causal layout for a BlockMask"
        )
    dense = layout.to_dense()
    dense = dense if dense.dim() == 3 else dense[None]
    lengths = (layout.q_len, layout.kv_len)
    partial = torch.zeros_like(dense)
    mask_mod = None
    if layout.causal:
        rows = torch.arange(grid.n_rows, device=dense.device)[:, None] + grid.first_row
        partial = dense & (torch.arange(grid.n_cols, device=dense.device) >= rows)
        offset = grid.q_offset

        def mask_mod(batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return kv_idx <= q_idx + offset

    return BlockMask.from_kv_blocks(
        *packed(partial),
        *packed(dense & ~partial),
        BLOCK_SIZE=layout.block_size,
        mask_mod=mask_mod,
        seq_lengths=lengths,
    )
