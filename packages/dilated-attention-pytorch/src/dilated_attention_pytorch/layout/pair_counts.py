"""The number of (query, key) pairs in the active blocks of a layout."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import TokenDilation
from .layout import BlockLayout


class Span(NamedTuple):
    """Queries and keys of a call, of which the pairs are counted."""

    first: int
    """The position of the first query."""
    q_len: int
    kv_len: int
    element: int | None = None
    """The batch element of the layout; None: of all."""


def pairs_in_blocks(
    layout: BlockLayout, dilation: TokenDilation | None = None, span: Span | None = None
) -> int:
    """The number of (query, key) pairs in the active blocks, over the batch and the heads of the layout.

    What a mask hides inside a block counts. Default: all queries and keys of the layout.
    """
    rows, _ = layout.lists(dilation)
    rates = (1,) if dilation is None else dilation.dilation_rates
    grid, size, device = layout.grid, layout.block_size, layout.device
    span = span or Span(grid.q_offset, grid.q_len, grid.kv_len)
    owner = rows.owners()
    row = owner // len(rates) % max(1, grid.n_rows)
    first = (row + grid.first_row) * size - span.first  # query of each entry's row
    queries = (first + size).clamp(max=span.q_len) - first.clamp(min=0)
    keys = (span.kv_len - rows.indices.long() * size).clamp(0, size)
    rate = torch.tensor(rates, dtype=torch.int64, device=device)[owner % len(rates)]
    element = owner // (len(rates) * max(1, grid.n_rows) * layout.num_heads)
    counts = element < layout.batch if span.element is None else element == span.element
    return int((queries.clamp(min=0) * keys // rate)[counts].sum())
