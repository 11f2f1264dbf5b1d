"""dilated_sparse: the diagonal, then blocks at growing multiples of every dilation rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from .budget import row_budgets
from .grid import BlockGrid

# Rows are taken in groups of at most this many (row, offset) candidates, to bound the working memory.
CANDIDATES_PER_GROUP = 2**22


def offset_order(rates: Sequence[int] | None, n_cols: int, causal: bool) -> Tensor:
    """Every block offset that fits the matrix, each once, in the order in which rows take them. int64, CPU."""
    if rates is None:
        rates = [2**power for power in range(max(1, (n_cols - 1).bit_length()))]
    offsets, keys = [torch.zeros(1, dtype=torch.int64, device="cpu")], [torch.full((1,), -1, device="cpu")]
    for i_rate, rate in enumerate(rates):
        rounds = torch.arange(1, (n_cols - 1) // rate + 1, device="cpu")
        key = (rounds * len(rates) + i_rate) * 2
        offsets += [-rounds * rate, rounds * rate]
        keys += [key, key + 1]
    # When the rounds run dry the nearest blocks fill the budget: they come after every round.
    steps = torch.arange(1, n_cols, device="cpu")
    key = (n_cols * len(rates) + len(rates) + steps) * 2
    offsets += [-steps, steps]
    keys += [key, key + 1]
    ordered = torch.cat(offsets)[torch.cat(keys).argsort()]
    if causal:
        ordered = ordered[ordered <= 0]
    values, where = ordered.sort(stable=True)  # the first occurrence of an offset wins
    first = torch.ones_like(values, dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return ordered[where[first].sort().values]


def take_first(offsets: Tensor, counts: Tensor, diagonal: Tensor, n_cols: int) -> tuple[Tensor, Tensor]:
    """Of every row the first `counts` offsets that stay inside the matrix, as (rows, columns)."""
    n_offsets = min(offsets.numel(), 2 * int(counts.max()) + 32)
    taken_rows, taken_cols = [], []
    start = 0
    while start < counts.numel():
        stop = start + max(1, CANDIDATES_PER_GROUP // n_offsets)
        wanted = counts[start:stop, None]
        columns = diagonal[start:stop, None] + offsets[:n_offsets]
        inside = (columns >= 0) & (columns < n_cols)
        rank = inside.cumsum(1, dtype=torch.int32)
        if n_offsets < offsets.numel() and bool((rank[:, -1:] < wanted).any()):
            n_offsets = min(offsets.numel(), 2 * n_offsets)
            continue
        row, place = (inside & (rank <= wanted)).nonzero(as_tuple=True)
        taken_rows.append(row + start)
        taken_cols.append(columns[row, place])
        start = stop
    return torch.cat(taken_rows), torch.cat(taken_cols)


def dilated_sparse(
    config: SparsePatternConfig, grid: BlockGrid, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern."""
    counts = grid.visible_rows(row_budgets(config.sparsity_ratio, grid)).to(device)
    offsets = offset_order(config.dilation_rates, grid.n_cols, grid.causal).to(device)
    return take_first(offsets, counts, grid.diagonal(device), grid.n_cols)
