"""RowIndex: how many blocks of a row lie before a column, and where they are, for many rows at once."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ..caching import BoundedCache
from ..layout.layout import BlockLayout


class RowIndex(NamedTuple):
    """Row lists on the CPU, one behind the other."""

    keys: Tensor
    """int64 (n,), ascending: ``list * n_cols + column``."""
    indptr: Tensor
    """int64 (n_lists + 1,), where each list begins."""
    n_cols: int

    @property
    def cols(self) -> Tensor:
        """The column of every place, int64 (n,)."""
        return self.keys % self.n_cols

    def numbers(self, lists: Tensor, before: Tensor) -> Tensor:
        """How many entries of each of these lists have a column before this one."""
        return torch.searchsorted(self.keys, lists * self.n_cols + before) - self.indptr[lists]


# Of each layout, on the CPU; layouts live as long as their users.
INDICES: weakref.WeakKeyDictionary[BlockLayout, BoundedCache] = weakref.WeakKeyDictionary()


def index_of(layout: BlockLayout) -> RowIndex:
    """The lists of all heads of a layout; of one on a GPU they are waited for, once."""
    found: RowIndex | None = kept_indices(layout).get("all heads")
    return found if found is not None else kept_indices(layout).keep("all heads", made_index(layout))


def index_of_any(layout: BlockLayout, heads: range) -> RowIndex:
    """A list for every row: the columns that any of these heads has."""
    if layout.num_heads == 1:
        return index_of(layout)
    key: Hashable = (heads.start, heads.stop)
    found: RowIndex | None = kept_indices(layout).get(key)
    return found if found is not None else kept_indices(layout).keep(key, joined_index(layout, heads))


def kept_indices(layout: BlockLayout) -> BoundedCache:
    kept = INDICES.get(layout)
    return kept if kept is not None else INDICES.setdefault(layout, BoundedCache(16))


def made_index(layout: BlockLayout) -> RowIndex:
    indptr = layout.row_lists.indptr.cpu().long()
    cols = layout.row_lists.indices.cpu().long()[: int(indptr[-1])]
    lists = torch.repeat_interleave(torch.arange(indptr.numel() - 1), indptr.diff())
    return RowIndex(lists * layout.grid.n_cols + cols, indptr, layout.grid.n_cols)


def joined_index(layout: BlockLayout, heads: range) -> RowIndex:
    every, n_rows, n_cols = index_of(layout), layout.grid.n_rows, layout.grid.n_cols
    first, stop = every.indptr[heads.start * n_rows], every.indptr[heads.stop * n_rows]
    keys = (every.keys[first:stop] % (n_rows * n_cols)).unique()
    return RowIndex(keys, torch.searchsorted(keys, torch.arange(n_rows + 1) * n_cols), n_cols)


def places_of(starts: Tensor, numbers: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The places of ranges (first, how many), one after another, and the range of each; `total` of them, on their device."""
    owner = torch.repeat_interleave(
        torch.arange(starts.numel(), device=starts.device), numbers, output_size=total
    )
    before = numbers.cumsum(0) - numbers
    return torch.arange(total, device=starts.device) + (starts - before)[owner], owner
