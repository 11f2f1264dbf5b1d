"""The active blocks of a layout as the tensors that other libraries take."""

from __future__ import annotations

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout


def block_lists(layout: BlockLayout, batch: int, heads: int) -> tuple[Tensor, Tensor]:
    """int32 columns (batch, heads, n_rows, most of a row), left-packed and ascending, and counts (batch, heads, n_rows)."""
    n_rows = layout.grid.n_rows
    counts = layout.row_lists.indptr.diff()
    head, row, col = layout.coo()
    place = torch.arange(col.numel(), device=col.device) - layout.row_lists.indptr[head * n_rows + row]
    columns = torch.zeros(
        counts.numel() // n_rows, n_rows, int(counts.max()), dtype=torch.int32, device=col.device
    )
    columns[head, row, place] = col.to(torch.int32)
    return of_all_heads(columns, layout, batch, heads), of_all_heads(
        counts.view(-1, n_rows), layout, batch, heads
    )


def block_mask(layout: BlockLayout, heads: int) -> Tensor:
    """Bool (heads, n_rows, n_cols) of a layout that all batch elements share; one head where all heads share it."""
    mask = layout.to_dense()
    return mask[None] if mask.dim() == 2 else mask.repeat_interleave(heads // layout.num_heads, 0)


def of_all_heads(x: Tensor, layout: BlockLayout, batch: int, heads: int) -> Tensor:
    x = x.view(layout.batch, layout.num_heads, *x.shape[1:]).repeat_interleave(heads // layout.num_heads, 1)
    return x.expand(batch, *x.shape[1:]).contiguous()
