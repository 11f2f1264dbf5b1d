"""The masks inside blocks that patterns ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from ..patterns.registry import masks_of
from .element_masks import distinct
from .lists import BlockMasks, packed_masks


def pattern_masks(
    configs: Sequence[SparsePatternConfig], grid: BlockGrid, head: Tensor, rows: Tensor, cols: Tensor
) -> BlockMasks | None:
    """The masks of blocks, int64 (n,) each, by the config of their head; None where all blocks count as a whole."""
    found = [
        (places, masks)
        for i_head, config in enumerate(configs)
        for places in [(head == i_head).nonzero().squeeze(1)]
        for masks in [masks_of(config, grid, rows[places], cols[places])]
        if masks is not None and masks.masks.shape[0]
    ]
    if not found:
        return None
    table = torch.cat([packed_masks(masks.masks) for _, masks in found])
    ids, first = torch.full_like(rows, -1), 0
    for places, masks in found:
        ids[places] = torch.where(masks.ids >= 0, masks.ids + first, -1)
        first += masks.masks.shape[0]
    if len(found) > 1:  # heads share masks
        flat, number = distinct(table.flatten(1))
        ids = torch.where(ids >= 0, number[ids], -1)
        table = flat.view(-1, *table.shape[1:])
    return BlockMasks(ids.to(torch.int32), table.contiguous())
