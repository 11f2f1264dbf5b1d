"""How far information travels through stacked layers of a layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import values

if TYPE_CHECKING:
    from .layout import BlockLayout

# Block rows that are followed at a time: bounds the working memory to this times the number of columns.
ROWS_PER_GROUP = 1024


def adjacency(layout: BlockLayout) -> Tensor:
    """Sparse float (n_cols, n_rows): 1 where any head of the layout connects row -> column, transposed."""
    _, rows, cols = layout.head_rows_cols()
    shape = (layout.grid.n_cols, layout.grid.n_rows)
    ones = torch.ones(rows.numel(), dtype=torch.float32, device=layout.device)
    return torch.sparse_coo_tensor(
        torch.stack([cols, rows]), ones, shape, device=layout.device, check_invariants=False
    ).coalesce()


def allowed_pairs(layout: BlockLayout, rows: Tensor) -> Tensor:
    """Bool (n_cols, rows): the pairs that dense attention with the same lengths and causality connects."""
    cols = torch.arange(layout.grid.n_cols, device=layout.device)[:, None]
    if layout.causal:
        past: Tensor = cols <= rows + layout.grid.first_row
        return past
    return torch.ones_like(cols + rows, dtype=torch.bool)


def check_square(layout: BlockLayout) -> None:
    if layout.q_len != layout.kv_len:
        raise ValueError(
            f"q_len {layout.q_len} and kv_len {layout.kv_len} differ: such layers do not stack; ask for coverage(1)"
        )


def reached(links: Tensor, rows: Tensor) -> Tensor:
    """Bool (n_cols, rows): the columns one layer away from each of the rows."""
    start = torch.zeros(links.shape[1], rows.numel(), dtype=torch.float32, device=links.device)
    start[rows, torch.arange(rows.numel(), device=links.device)] = 1
    found: Tensor = torch.sparse.mm(links, start) > 0
    return found


def coverage(layout: BlockLayout, layers: int) -> float:
    """Share of allowed block pairs connected within `layers` layers."""
    given, layers = layers, values.integer(layers) or 0
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {values.shown(given)}")
    if layers > 1:
        check_square(layout)
    links, connected, total = adjacency(layout), 0, 0
    for rows in torch.arange(layout.grid.n_rows, device=layout.device).split(ROWS_PER_GROUP):
        seen = reached(links, rows)
        for _ in range(layers - 1):
            wider = seen | (torch.sparse.mm(links, seen.float()) > 0)
            if torch.equal(wider, seen):
                break
            seen = wider
        allowed = allowed_pairs(layout, rows)
        connected += int((seen & allowed).sum())
        total += int(allowed.sum())
    return connected / total


def hops_to_full_coverage(layout: BlockLayout) -> int | None:
    """Fewest layers that connect every allowed pair, or None."""
    check_square(layout)
    links, most = adjacency(layout), 1
    for rows in torch.arange(layout.grid.n_rows, device=layout.device).split(ROWS_PER_GROUP):
        allowed, seen, hops = allowed_pairs(layout, rows), reached(links, rows), 1
        while not bool((seen | ~allowed).all()):
            wider = seen | (torch.sparse.mm(links, seen.float()) > 0)
            if torch.equal(wider, seen):
                return None
            seen, hops = wider, hops + 1
        most = max(most, hops)
    return most
