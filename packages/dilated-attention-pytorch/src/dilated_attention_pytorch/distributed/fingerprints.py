"""Fingerprints of tensors and layouts: 64 bits in place of the values, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists

PIECE = 2**22  # elements at a time: what a fingerprint needs of memory does not grow with the tensor
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def mixed(x: Tensor) -> Tensor:
    """splitmix64 of int64: every bit of the result depends on every bit of x. Exact, as integers wrap around."""
    x = x + -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 2**33 - 1)


def fingerprint(x: Tensor) -> Tensor:
    """The bits of all elements and their places as one int64 (), on the device of x.

    A sum of integers, which has the same value in whatever order a device adds.
    """
    bits = torch.view_as_real(x) if x.is_complex() else x
    flat = bits.detach().contiguous().flatten()
    flat = flat.view(INTEGERS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for first in range(0, flat.numel(), PIECE):
        piece = flat[first : first + PIECE].to(torch.int64)
        places = torch.arange(first, first + piece.numel(), device=x.device)
        total = total + mixed(mixed(places) + piece).sum()
    return total


def texts_of_tensors(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Dtype, shape and fingerprint of each tensor in words. One read of the device for all of them."""
    if not tensors:
        return {}
    device = next(iter(tensors.values())).device
    prints = torch.stack([fingerprint(x).to(device) for x in tensors.values()]).tolist()
    return {
        name: f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} #{value & 2**64 - 1:016x}"
        for (name, x), value in zip(tensors.items(), prints)
    }


def facts_of_layout(layout: BlockLayout, name: str = "layout") -> dict[str, object]:
    """What two layouts have in common exactly when they are the same: sizes, lists and masks inside blocks."""
    grid = layout.grid
    facts: dict[str, object] = {
        name: f"{grid.q_len} queries and {grid.kv_len} keys, block_size {grid.block_size}, "
        f"{'causal' if grid.causal else 'not causal'}, batch {layout.batch}, {layout.num_heads} heads",
        f"{name}: blocks of each row": layout.row_lists.indptr,
        f"{name}: active blocks": within_lists(layout.row_lists, layout.row_lists.indices),
        f"{name}: block ids": within_lists(layout.row_lists, layout.row_lists.block_ids),
    }
    if layout.block_masks is not None:
        facts[f"{name}: masks of blocks"] = layout.block_masks.ids
        facts[f"{name}: masks"] = layout.block_masks.table
    return facts


def within_lists(lists: BlockLists, entries: Tensor) -> Tensor:
    """The entries, 0 behind the end of the last list, where they have no meaning."""
    places = torch.arange(entries.numel(), dtype=torch.int32, device=entries.device)
    return torch.where(places < lists.indptr[-1], entries, 0)
