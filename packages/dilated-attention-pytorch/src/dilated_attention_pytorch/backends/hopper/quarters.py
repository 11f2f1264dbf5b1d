"""Blocks of 256 as four blocks of 128, which the kernels serve: lists, block ids, masks and grid; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ...grid import BlockGrid
from ...layout.lists import BlockLists

LARGE = 256
SMALL = LARGE // 2


def quartered_grid(grid: BlockGrid) -> BlockGrid:
    """The grid of the quarters: two rows for every row, also where queries end in the first of them; likewise columns."""
    return BlockGrid(grid.n_rows * LARGE, grid.n_cols * LARGE, SMALL, grid.causal, grid.first_row * LARGE)


def quartered_lists(lists: BlockLists, of_rows: bool) -> BlockLists:
    """The lists of the quarters: two for every list, with two entries for every entry.

    Quarter (i, j) of a block, in its row half i and its column half j, has the block id 4 * (id of the block) + 2 * i + j.
    """
    begin, owner = lists.indptr[:-1].long(), lists.owners()
    n_lists, capacity = begin.numel(), lists.indices.numel()
    length = lists.indptr.diff()
    indptr = torch.stack([4 * begin, 4 * begin + 2 * length], 1).flatten()
    indptr = torch.cat([indptr, 4 * lists.indptr[-1:].long()]).to(torch.int32)
    # of entry e of a list from a on: 4 a + 2 (e - a), in the second list behind all of the first; what is behind the lists stays
    # behind them
    padded_begin, padded_length = (torch.nn.functional.pad(x, (0, 1)) for x in (begin, length))
    entry = torch.arange(capacity, device=lists.device)
    is_listed = owner < n_lists
    first = torch.where(is_listed, 2 * (entry + padded_begin[owner]), 4 * entry)
    step = torch.where(is_listed, 2 * padded_length[owner], 2)
    place = torch.stack([first, first + 1, first + step, first + step + 1], 1).flatten()
    quarters = torch.arange(4, device=lists.device)
    own, other = quarters // 2, quarters % 2  # halves of the list's own side and of the other
    quarter = 2 * own + other if of_rows else 2 * other + own
    return BlockLists(
        indptr,
        scattered(place, 2 * lists.indices.long()[:, None] + other),
        scattered(place, 4 * lists.block_ids.long()[:, None] + quarter),
    )


def scattered(places: Tensor, numbers: Tensor) -> Tensor:
    """The numbers at their places, int32."""
    return torch.empty_like(places, dtype=torch.int32).scatter_(0, places, numbers.flatten().to(torch.int32))


def quartered_masks(table: Tensor) -> Tensor:
    """Masks int32 (n, 256, 8) as (4 n, 128, 4): quarter (i, j) of mask m is mask 4 * m + 2 * i + j."""
    halves = table.view(-1, 2, SMALL, 2, SMALL // 32)
    return halves.transpose(2, 3).reshape(-1, SMALL, SMALL // 32)
