"""dilated_sparse: the diagonal block, a link to another block, and blocks at every scale, distributed over the rows.

Each row takes columns in this order until its budget is used up, skipping those outside the matrix (causal: those in
the future):

1. the diagonal block;
2. its link: the previous block if causal, otherwise the one given by `links`, which form a cycle through all blocks;
3. round 1: the offsets -r and +r for every rate r (causal: -r), where each row starts at a different offset, see
   `start_of_round`, shifted by `rotation`;
4. rounds t = 2, 3, ...: the offsets -t * r and +t * r, with the rates in the given order;
5. the nearest blocks not taken yet.

Steps 1 and 2 connect the sequence, step 3 shortens the paths. tools/pattern-rules compares this rule with others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from .budget import ratio_budget
from .registry import register

# Rows are processed in groups of at most this many (row, offset) candidates, to bound the memory in use.
CANDIDATES_PER_GROUP = 2**22
BITS = 32  # number of bits that are reversed in a row number


def scales_of(rates: Sequence[int] | None, n_cols: int) -> list[int]:
    """The distinct rates in the given order; None stands for all powers of two below n_cols, at least 1."""
    if rates is None:
        return [2**power for power in range(max(1, (n_cols - 1).bit_length()))]
    return list(dict.fromkeys(rates))


def ruler(scales: Sequence[int], n_cols: int) -> Iterator[int]:
    """The scales from 2 to half the sequence in the order of the ruler sequence.

    The smallest scale is every second item, the next one every fourth, and so on (2 4 2 8 2 4 2 16 ...).
    """
    longer = sorted(scale for scale in scales if 1 < scale <= n_cols // 2) or [2]
    for step in itertools.count(1):
        trailing_zeros = (step & -step).bit_length() - 1
        yield longer[min(trailing_zeros, len(longer) - 1)]


def links(scales: Sequence[int], n_cols: int) -> Tensor:
    """Offset from each block to the one it links to, int64 (n_cols,) on the CPU; the links form one cycle.

    The sequence is divided into runs of blocks that link alternately ahead and back. A block links to the nearest
    block in its direction that has the same direction; at the two ends the directions are joined. A run is one block
    shorter than its scale in `ruler`, so that the link across the run has the length of the scale.
    """
    lengths, total = [], 0
    for scale in ruler(scales, n_cols):
        lengths.append(min(scale - 1, n_cols - total))
        total += lengths[-1]
        if total == n_cols:
            break
    runs = torch.arange(len(lengths), device="cpu").repeat_interleave(torch.tensor(lengths, device="cpu"))
    ahead, back = (runs % 2 == 0).nonzero().flatten(), (runs % 2 == 1).nonzero().flatten()
    cycle = torch.cat([ahead, back.flip(0)])
    link = torch.empty(n_cols, dtype=torch.int64, device="cpu")
    link[cycle] = cycle.roll(-1) - cycle
    return link


def bit_reversed(rows: Tensor) -> Tensor:
    """The lowest BITS bits of each number in reverse order: 2**BITS times the van der Corput sequence."""
    result = torch.zeros_like(rows)
    for bit in range(BITS):
        result |= (rows >> bit & 1) << (BITS - 1 - bit)
    return result


def start_of_round(row: Tensor, n_offsets: Tensor) -> Tensor:
    """Index of the offset at which a row starts round 1: floor(n_offsets * v(row)), v the van der Corput sequence."""
    return bit_reversed(row) * n_offsets >> BITS


def with_signs(offsets: Tensor, causal: bool) -> Tensor:
    """-x and +x for every offset x, or only -x if causal."""
    return -offsets if causal else torch.stack([-offsets, offsets], 1).flatten()


def later_offsets(scales: Sequence[int], n_cols: int, causal: bool, at_least: int) -> Tensor:
    """The distinct offsets of rounds 2, 3, ..., then the nearest ones; without 0 and those of round 1.

    The first `at_least` of them or a few more, all if there are fewer: a row takes few, and all are n_cols for every rate.
    """
    rates = torch.tensor(scales, dtype=torch.int64, device="cpu")
    n_rounds = (n_cols - 1) // int(rates.min())
    last_round = 1
    while True:
        last_round = min(n_rounds, max(2 * last_round, at_least + 1))
        rounds = torch.arange(2, max(2, last_round + 1), device="cpu")
        ordered = (rounds[:, None] * rates).flatten()
        ordered = torch.cat([rates, ordered[ordered < n_cols]])
        if last_round >= n_rounds:
            ordered = torch.cat([ordered, torch.arange(1, n_cols, device="cpu")])
        values, where = ordered.sort(stable=True)  # the first occurrence of an offset wins
        first = torch.ones_like(values, dtype=torch.bool)
        first[1:] = values[1:] != values[:-1]
        once = where[first].sort().values[len(scales) :]
        if last_round >= n_rounds or once.numel() >= at_least:
            return with_signs(ordered[once], causal)


class ColumnOrder:
    """The order in which each row takes its columns, computed for a slice of rows and as many offsets as needed."""

    def __init__(self, config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> None:
        scales = scales_of(config.dilation_rates, grid.n_cols)
        self.n_cols, self.causal, self.rotation = grid.n_cols, grid.causal, config.rotation
        self.scales, self.device = scales, device
        self.diagonal = grid.diagonal(device)
        self.row_number = self.diagonal if grid.causal else torch.arange(grid.n_rows, device=device)
        if grid.causal:
            self.link = -torch.ones_like(self.diagonal)
        else:
            self.link = links(scales, grid.n_cols).to(device)[self.diagonal]
        near = [scale for scale in scales if scale < grid.n_cols]
        round_1 = torch.tensor(near, dtype=torch.int64, device="cpu")
        self.round_1 = with_signs(round_1, grid.causal).to(device)
        self._later = self.round_1[:0]

    @property
    def n_later(self) -> int:
        """The number of offsets after round 1: all up to the length that are not of it."""
        signs = 1 if self.causal else 2
        return signs * (self.n_cols - 1) - self.round_1.numel()

    @property
    def n_offsets(self) -> int:
        return 2 + self.round_1.numel() + self.n_later

    def later(self, count: int) -> Tensor:
        """The first `count` offsets after round 1, or all if there are fewer."""
        if self._later.numel() < min(count, self.n_later):
            self._later = later_offsets(self.scales, self.n_cols, self.causal, count).to(self.device)
        return self._later[:count]

    def columns(self, rows: slice, n_offsets: int) -> tuple[Tensor, Tensor]:
        """Columns (rows, >= n_offsets) in the order in which they are taken, and a bool mask of the valid ones."""
        diagonal, link = self.diagonal[rows, None], self.link[rows, None]
        linked = diagonal + link
        round_1 = self._round_1(rows, diagonal, link)
        later = self.later(max(0, n_offsets - 2 - self.round_1.numel()))
        columns = torch.cat([diagonal, linked, round_1, diagonal + later], 1)
        valid = (columns >= 0) & (columns < self.n_cols)
        valid[:, 1] &= link[:, 0] != 0
        valid[:, 2 + self.round_1.numel() :] &= later != link
        return columns, valid

    def _round_1(self, rows: slice, diagonal: Tensor, link: Tensor) -> Tensor:
        """The columns of round 1, rotated to each row's start; the invalid ones are replaced by -1 at the end."""
        columns = diagonal + self.round_1
        valid = (columns >= 0) & (columns < self.n_cols) & (self.round_1 != link)
        count = valid.sum(1, keepdim=True)
        start = start_of_round(self.row_number[rows, None], count) + self.rotation
        target = (valid.cumsum(1) - 1 - start) % count.clamp(min=1)
        rotated = torch.full_like(torch.nn.functional.pad(columns, (0, 1)), -1)
        rotated.scatter_(1, torch.where(valid, target, columns.shape[1]), columns)
        return rotated[:, :-1]


def take_first(order: ColumnOrder, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The first counts[i] valid columns of every row i, as (rows, columns)."""
    max_offsets = order.n_offsets
    n_offsets = min(max_offsets, order.round_1.numel() + 2 * int(counts.max()) + 32)
    taken_rows, taken_cols = [], []
    start = 0
    while start < counts.numel():
        stop = start + max(1, CANDIDATES_PER_GROUP // n_offsets)
        wanted = counts[start:stop, None]
        columns, valid = order.columns(slice(start, stop), n_offsets)
        rank = valid.cumsum(1, dtype=torch.int32)
        if n_offsets < max_offsets and bool((rank[:, -1:] < wanted).any()):
            n_offsets = min(max_offsets, 2 * n_offsets)  # too many were invalid: retry with more
            continue
        row, index = (valid & (rank <= wanted)).nonzero(as_tuple=True)
        taken_rows.append(row + start)
        taken_cols.append(columns[row, index])
        start = stop
    return torch.cat(taken_rows), torch.cat(taken_cols)


@register("dilated_sparse")
def dilated_sparse(
    config: SparsePatternConfig, grid: BlockGrid, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern, int64 (n_active,) each."""
    counts = grid.visible_rows(ratio_budget(config, grid).blocks()).to(device)
    return take_first(ColumnOrder(config, grid, device), counts)
