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
        indices: (capacity,), the columns of a row or the rows of a column. What is behind the end of the last list, where
            lists were made without reading their lengths, has no meaning.
        block_ids: (capacity,), the place of each block in a block bias and in the masks inside blocks.
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
        """The list of every index, int64 (capacity,); the number of lists for what is behind the last."""
        places = torch.arange(self.indices.numel(), dtype=torch.int32, device=self.device)
        return torch.searchsorted(self.indptr[1:], places, right=True)

    def savable(self) -> BlockLists:
        """The lists as tensors that autograd can save, also where they were made or unpickled in inference mode."""
        if not self.indices.is_inference():
            return self
        with torch.inference_mode(False):
            return BlockLists(*(tensor.clone() for tensor in self.tensors()))


class BlockMasks(NamedTuple):
    """Which elements of the active blocks count. Blocks share masks, so the memory stays small."""

    ids: Tensor
    """int32 (num_block_ids,), the mask of each block by its block id, or -1: the whole block counts."""
    table: Tensor
    """int32 (n_masks, block_size, words), the distinct masks. Key k of a query is bit ``k % 32`` of its word ``k // 32``, set
    where the pair counts; a block of 16 has one word of 16 bits. See `packed_masks`."""

    def to(self, device: torch.device) -> BlockMasks:
        """The same masks on another device."""
        return BlockMasks(self.ids.to(device), self.table.to(device))

    def savable(self) -> BlockMasks:
        """The masks as tensors that autograd can save, also where they were made or unpickled in inference mode."""
        if not self.ids.is_inference():
            return self
        with torch.inference_mode(False):
            return BlockMasks(self.ids.clone(), self.table.clone())


def packed_masks(masks: Tensor) -> Tensor:
    """Bool (n_masks, block_size, block_size) as int32 (n_masks, block_size, words), a bit for every pair."""
    size = masks.shape[2]
    # eight bools are an int64 of bytes 0 and 1: the product has byte i's bit at 56 + i, and nothing carries into them
    octets = (masks.contiguous().view(torch.int64) * 0x0102040810204080 >> 56).to(torch.uint8)
    return torch.nn.functional.pad(octets, (0, -size % 32 // 8)).view(torch.int32)


def unpacked_masks(table: Tensor) -> Tensor:
    """The inverse of `packed_masks`."""
    bits = (table.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=table.device)) & 1
    return bits.flatten(2)[:, :, : table.shape[1]].bool()


def build_csr(keys: Tensor, n_lists: int, n_inner: int, indices: Tensor, block_ids: Tensor) -> BlockLists:
    """The lists of blocks in any order; `keys` are ``list * n_inner + index``, integers.

    Those of ``n_lists * n_inner`` are in no list: they come last, behind all lists.
    """
    if n_lists * n_inner < 2**31:
        keys = keys.to(torch.int32)  # sorted in half the time and memory
    keys, order = keys.sort()
    return csr_of_sorted(keys, n_lists, n_inner, indices[order], block_ids[order])


def csr_of_sorted(keys: Tensor, n_lists: int, n_inner: int, indices: Tensor, block_ids: Tensor) -> BlockLists:
    """As `build_csr`, of blocks in the order of their keys."""
    bounds = torch.arange(n_lists + 1, dtype=keys.dtype, device=keys.device) * n_inner
    indptr = torch.searchsorted(keys, bounds, out_int32=True)
    return BlockLists(indptr, indices.to(torch.int32), block_ids.to(torch.int32))
