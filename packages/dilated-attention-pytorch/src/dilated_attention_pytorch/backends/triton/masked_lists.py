"""MaskedLists: lists of blocks in which those with a mask inside come last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...layout.lists import BlockLists, BlockMasks


class MaskedLists(NamedTuple):
    """`BlockLists` whose lists have two sorted parts: kernels take the first without a mask."""

    indptr: Tensor
    indices: Tensor
    block_ids: Tensor
    mask_ids: Tensor
    """int32 (capacity,), the mask of each entry, or -1."""
    splits: Tensor
    """int32 (n_lists,), where the second part of each list begins."""


def masked_lists(lists: BlockLists, masks: BlockMasks) -> MaskedLists:
    """The lists with the blocks that have a mask behind the others."""
    owner, n_lists = lists.owners(), lists.indptr.numel() - 1
    is_listed = owner < n_lists
    mask_ids = torch.full_like(lists.block_ids, -1)
    if masks.ids.numel() > 0:
        mask_ids = torch.where(is_listed, masks.ids[torch.where(is_listed, lists.block_ids, 0)], -1)
    is_masked = mask_ids >= 0
    order = (owner * 2 + is_masked).argsort(stable=True)
    n_whole = torch.zeros(n_lists + 1, dtype=torch.int32, device=lists.device)
    n_whole.scatter_add_(0, owner, (~is_masked).int())
    splits = lists.indptr[:-1] + n_whole[:-1]
    return MaskedLists(lists.indptr, lists.indices[order], lists.block_ids[order], mask_ids[order], splits)
