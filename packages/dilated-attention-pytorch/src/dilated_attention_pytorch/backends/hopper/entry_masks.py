"""Masks inside blocks as the kernels read them: the mask of every entry of the lists, and the masks also by keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ...layout.lists import BlockLists, BlockMasks, packed_masks, unpacked_masks

PAIRS_AT_ONCE = 2**22  # that are unpacked to numbers


def mask_ids(lists: BlockLists, masks: BlockMasks, parts: int = 1) -> Tensor:
    """The mask of every entry, int32 (capacity,), -1 where the whole block counts and behind the lists.

    Args:
        lists: of the rows or of the columns.
        masks: of the layout.
        parts: 4 where `lists` are of quarters (quarters.py), as then the masks are.
    """
    owner, n_lists = lists.owners(), lists.indptr.numel() - 1
    if masks.ids.numel() == 0:
        return torch.full_like(lists.block_ids, -1)
    block_ids = torch.where(owner < n_lists, lists.block_ids, 0)
    ids = masks.ids[block_ids // parts]
    of_part = ids * parts + block_ids % parts
    return torch.where((ids >= 0) & (owner < n_lists), of_part, -1).to(torch.int32)


def masks_by_keys(table: Tensor) -> Tensor:
    """Masks int32 (n, block_size, words) transposed: query i of a key is bit ``i % 32`` of its word ``i // 32``."""
    made = torch.empty_like(table)
    size = table.shape[1]
    step = max(1, PAIRS_AT_ONCE // size**2)
    for first in range(0, table.shape[0], step):
        pairs = unpacked_masks(table[first : first + step])
        made[first : first + step] = packed_masks(pairs.transpose(1, 2))
    return made
