"""BlockLists: lists of blocks in compressed form, the rows or the columns of a layout; the masks inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Compressed lists (CSR): list x holds ``indices[indptr[x]:indptr[x + 1]]``, sorted.

    All tensors are int32. There is a list for every (batch element, head, row or column, distance class), in this order;
    one batch element where all share the lists, and one distance class without token dilation.

    Attributes:
        indptr: (n_lists + 1,), where each list begins, and the end of the last.
        indices: (num_active_blocks,), the columns of a row or the rows of a column.
        block_ids: (num_active_blocks,), the position of each block in the layout's row lists, and so in a block bias.
    """

    indptr: Tensor
    indices: Tensor
    block_ids: Tensor

    @property
    def device(self) -> torch.device:
        return self.indices.device

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that it holds."""
        return self.indptr, self.indices, self.block_ids

    def to(self, device: torch.device) -> BlockLists:
        """The same lists on another device."""
        return BlockLists(*(tensor.to(device) for tensor in self.tensors()))

    def owners(self) -> Tensor:
        """The list of every index, int64 (num_active_blocks,)."""
        counts = self.indptr.diff().long()
        return torch.repeat_interleave(counts, output_size=self.indices.numel())

    def savable(self) -> BlockLists:
        """The lists as tensors that autograd can save, also where they were made or unpickled in inference mode."""
        if not self.indices.is_inference():
            return self
        with torch.inference_mode(False):
            return BlockLists(*(tensor.clone() for tensor in self.tensors()))


class BlockMasks(NamedTuple):
    """Which elements of the active blocks count. Blocks share masks, so the memory stays small."""

    ids: Tensor
    """int32 (num_active_blocks,), the mask of each block in the order of the row lists, or -1: the whole block counts."""
    table: Tensor
    """bool (n_masks, block_size, block_size), the distinct masks by query and key, True where the pair counts."""


def build_csr(keys: Tensor, n_lists: int, n_inner: int, indices: Tensor, block_ids: Tensor) -> BlockLists:
    """The lists of blocks in any order; `keys` are ``list * n_inner + index``, int64."""
    order = keys.argsort()
    counts = torch.zeros(n_lists + 1, dtype=torch.int32, device=keys.device)
    counts.scatter_add_(0, keys // n_inner + 1, torch.ones_like(keys, dtype=torch.int32))
    indptr = counts.cumsum(0, dtype=torch.int32)
    return BlockLists(indptr, indices[order].to(torch.int32), block_ids[order].to(torch.int32))
