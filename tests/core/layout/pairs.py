"""What a layout says, pair by pair: for comparisons in tests."""

from __future__ import annotations

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.layout.lists import unpacked_masks


def pairs_of(layout: BlockLayout) -> Tensor:
    """Bool (batch, heads, q_len, kv_len): the pairs that count; of a causal layout none of a later key."""
    size, grid = layout.block_size, layout.grid
    shape = (layout.batch, layout.num_heads, grid.n_rows, grid.n_cols, size, size)
    blocks = torch.zeros(shape, dtype=torch.bool)
    lists = layout.row_lists
    for i_list in range(layout.batch * layout.num_heads * grid.n_rows):
        head, row = divmod(i_list, grid.n_rows)
        element, head = divmod(head, layout.num_heads)
        for place in range(int(lists.indptr[i_list]), int(lists.indptr[i_list + 1])):
            mask = torch.ones(size, size, dtype=torch.bool)
            if layout.block_masks is not None:
                number = int(layout.block_masks.ids[lists.block_ids[place]])
                if number >= 0:
                    mask = unpacked_masks(layout.block_masks.table[number : number + 1])[0]
            blocks[element, head, row, int(lists.indices[place])] = mask
    position = torch.arange(layout.q_len) + (layout.kv_len - layout.q_len if layout.causal else 0)
    whole = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    kept = whole[:, :, position - position[0] // size * size, : layout.kv_len]
    return kept & (torch.arange(layout.kv_len) <= position[:, None]) if layout.causal else kept


def equal_layouts(one: BlockLayout, other: BlockLayout) -> bool:
    """Whether two layouts have the same lengths, lists and masks."""
    mine = [*one.row_lists.tensors(), *one.col_lists.tensors(), *(one.block_masks or ())]
    theirs = [*other.row_lists.tensors(), *other.col_lists.tensors(), *(other.block_masks or ())]
    return (
        (one.grid, one.batch, one.num_heads, one.configs)
        == (other.grid, other.batch, other.num_heads, other.configs)
        and len(mine) == len(theirs)
        and all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    )
