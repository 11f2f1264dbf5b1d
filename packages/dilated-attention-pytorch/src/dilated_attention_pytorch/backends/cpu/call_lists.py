"""The row lists of one part of a call, cut out of those of a layout that covers more."""

from __future__ import annotations

import torch

from ...caching import BoundedCache
from ...layout.lists import BlockLists
from ..problem import AttentionProblem
from .list_cache import cached

MAX_KEPT = 64  # cuts of a list: the sequences of a batch, which the next layer has again
MAX_KEPT_BLOCKS = 2**14  # of a cut


def rows_of_call(problem: AttentionProblem, element: int, first: int, n_rows: int, n_cols: int) -> BlockLists:
    """The lists of the rows `first` to ``first + n_rows - 1`` of one batch element of the layout.

    Only columns below `n_cols`, and nothing behind the last list. They are kept with the lists of the layout, so that
    what is derived from them is found again.
    """
    p = problem
    if (
        p.layout_batch == 1
        and n_rows == p.grid.n_rows
        and n_cols >= p.grid.n_cols
        and int(p.rows.indptr[-1]) == p.rows.indices.numel()
    ):
        return p.rows
    cuts: BoundedCache = cached(p.rows.indices, "cuts", lambda: BoundedCache(MAX_KEPT))
    key = (element, first, n_rows, n_cols, p.layout_batch, p.layout_heads, len(p.rates))
    found: BlockLists | None = cuts.get(key)
    if found is None:
        found = cut(p, element, first, n_rows, n_cols).savable()
        if found.indices.numel() <= MAX_KEPT_BLOCKS:
            cuts.keep(key, found)
    return found


def cut(problem: AttentionProblem, element: int, first: int, n_rows: int, n_cols: int) -> BlockLists:
    """`rows_of_call`, made anew."""
    p, n_classes = problem, len(problem.rates)
    per_head = p.grid.n_rows * n_classes
    begin, count = element * p.layout_heads * per_head + first * n_classes, n_rows * n_classes
    indptr, indices, block_ids = p.rows.tensors()
    if p.layout_heads == 1 or n_rows == p.grid.n_rows:  # one list behind the other
        offsets = indptr[begin : begin + p.layout_heads * count + 1]
        blocks = slice(int(offsets[0]), int(offsets[-1]))
        made = BlockLists(offsets - blocks.start, indices[blocks], block_ids[blocks])
    else:
        head = torch.arange(p.layout_heads, device="cpu")[:, None] * per_head
        lists = (begin + head + torch.arange(count, device="cpu")).flatten()
        starts = indptr[lists]
        counts = indptr[lists + 1] - starts
        offsets = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        moved = (starts - offsets[:-1]).repeat_interleave(counts)
        places = moved + torch.arange(moved.numel(), device="cpu")
        made = BlockLists(offsets, indices[places], block_ids[places])
    if n_cols >= p.grid.n_cols:
        return made
    keep = made.indices < n_cols
    if bool(keep.all()):
        return made
    n_kept = torch.nn.functional.pad(keep.cumsum(0, dtype=torch.int32), (1, 0))
    return BlockLists(n_kept[made.indptr.long()], made.indices[keep], made.block_ids[keep])
