"""dilated_sparse: the own block, a link to the next one, then blocks at every scale, shared out over the rows.

A row takes, as far as its budget goes, of the columns inside the matrix (causal: not in the future):

1. its own block, the diagonal;
2. its link: causal the previous block, else that of `links`, a cycle through all blocks;
3. round 1: the offsets -r and +r of the rates r (causal: -r), beginning at another one than the rows beside it, see
   `first_of_round`, and `rotation` later;
4. rounds t = 2, 3, ...: the offsets -t * r and +t * r of the rates in their order;
5. the nearest blocks not yet taken.

Steps 1 and 2 connect the sequence, step 3 shortens the way: tools/pattern-rules compares the rules that were tried.
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

# Rows are taken in groups of at most this many (row, offset) candidates, to bound the working memory.
CANDIDATES_PER_GROUP = 2**22
BITS = 32  # of the mirrored row number


def scales_of(rates: Sequence[int] | None, n_cols: int) -> list[int]:
    """The rates of a sequence, each once, in the order given; powers of two where none are. At least one."""
    if rates is None:
        return [2**power for power in range(max(1, (n_cols - 1).bit_length()))]
    return list(dict.fromkeys(rates))


def ruler(scales: Sequence[int], n_cols: int) -> Iterator[int]:
    """The scales from 2 to half the sequence by size: the first every second time, the next every fourth, and on."""
    longer = sorted(scale for scale in scales if 1 < scale <= n_cols // 2) or [2]
    for step in itertools.count(1):
        trailing_zeros = (step & -step).bit_length() - 1
        yield longer[min(trailing_zeros, len(longer) - 1)]


def links(scales: Sequence[int], n_cols: int) -> Tensor:
    """Offset of the block that block j links to, int64 (n_cols,), on the CPU: one cycle through all blocks.

    Runs of blocks look ahead and back in turn. A block links to the nearest one that way which looks the same way; the
    last that looks ahead links to the last that looks back, and the first of these to the first of those. A run has
    one block less than the scale of `ruler`, so the link over it has that length.
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


def mirrored(rows: Tensor) -> Tensor:
    """The lowest BITS bits of a number in reverse order: 2**BITS times the van der Corput sequence."""
    result = torch.zeros_like(rows)
    for bit in range(BITS):
        result |= (rows >> bit & 1) << (BITS - 1 - bit)
    return result


def first_of_round(row: Tensor, n_offsets: Tensor) -> Tensor:
    """At which of its offsets of round 1 a row begins: floor(n_offsets * v(row)), v the van der Corput sequence."""
    return mirrored(row) * n_offsets >> BITS


def with_signs(offsets: Tensor, causal: bool) -> Tensor:
    """-x, +x of every offset, or -x alone when causal."""
    return -offsets if causal else torch.stack([-offsets, offsets], 1).flatten()


def later_offsets(scales: Sequence[int], n_cols: int, causal: bool) -> Tensor:
    """The offsets of rounds 2, 3, ... and then the nearest ones, each once; none of the own block and round 1."""
    rates = torch.tensor(scales, dtype=torch.int64, device="cpu")
    rounds = torch.arange(2, max(2, (n_cols - 1) // int(rates.min()) + 1), device="cpu")
    multiples = (rounds[:, None] * rates).flatten()
    steps = torch.arange(1, n_cols, device="cpu")
    ordered = torch.cat([rates, multiples[multiples < n_cols], steps])
    values, where = ordered.sort(stable=True)  # the first occurrence of an offset wins
    first = torch.ones_like(values, dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    once = where[first].sort().values[len(scales) :]
    return with_signs(ordered[once], causal)


class Orders:
    """In which order every row takes its offsets, as far as it is made: (rows, offsets) at a time."""

    def __init__(self, config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> None:
        scales = scales_of(config.dilation_rates, grid.n_cols)
        self.n_cols, self.rotation = grid.n_cols, config.rotation
        self.diagonal = grid.diagonal(device)
        self.number = self.diagonal if grid.causal else torch.arange(grid.n_rows, device=device)
        if grid.causal:
            self.link = -torch.ones_like(self.diagonal)
        else:
            self.link = links(scales, grid.n_cols).to(device)[self.diagonal]
        near = [scale for scale in scales if scale < grid.n_cols]
        round_1 = torch.tensor(near, dtype=torch.int64, device="cpu")
        self.round_1 = with_signs(round_1, grid.causal).to(device)
        self.later = later_offsets(scales, grid.n_cols, grid.causal).to(device)

    @property
    def n_offsets(self) -> int:
        return 2 + self.round_1.numel() + self.later.numel()

    def columns(self, rows: slice, n_offsets: int) -> tuple[Tensor, Tensor]:
        """The columns of the first `n_offsets`, (rows, offsets), and which of them count."""
        diagonal, link = self.diagonal[rows, None], self.link[rows, None]
        linked = diagonal + link
        round_1 = self._turned(rows, diagonal, link)
        later = self.later[: max(0, n_offsets - 2 - self.round_1.numel())]
        columns = torch.cat([diagonal, linked, round_1, diagonal + later], 1)
        inside = (columns >= 0) & (columns < self.n_cols)
        inside[:, 1] &= link[:, 0] != 0
        inside[:, 2 + self.round_1.numel() :] &= later != link
        return columns, inside

    def _turned(self, rows: slice, diagonal: Tensor, link: Tensor) -> Tensor:
        """The columns of round 1 in the order of each row, then -1 in place of those outside."""
        columns = diagonal + self.round_1
        inside = (columns >= 0) & (columns < self.n_cols) & (self.round_1 != link)
        count = inside.sum(1, keepdim=True)
        begin = first_of_round(self.number[rows, None], count) + self.rotation
        place = (inside.cumsum(1) - 1 - begin) % count.clamp(min=1)
        turned = torch.full_like(torch.nn.functional.pad(columns, (0, 1)), -1)
        turned.scatter_(1, torch.where(inside, place, columns.shape[1]), columns)
        return turned[:, :-1]


def take_first(orders: Orders, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row the first `counts` of its columns inside the matrix, as (rows, columns)."""
    most = orders.n_offsets
    n_offsets = min(most, orders.round_1.numel() + 2 * int(counts.max()) + 32)
    taken_rows, taken_cols = [], []
    start = 0
    while start < counts.numel():
        stop = start + max(1, CANDIDATES_PER_GROUP // n_offsets)
        wanted = counts[start:stop, None]
        columns, inside = orders.columns(slice(start, stop), n_offsets)
        rank = inside.cumsum(1, dtype=torch.int32)
        if n_offsets < most and bool((rank[:, -1:] < wanted).any()):
            n_offsets = min(most, 2 * n_offsets)
            continue
        row, place = (inside & (rank <= wanted)).nonzero(as_tuple=True)
        taken_rows.append(row + start)
        taken_cols.append(columns[row, place])
        start = stop
    return torch.cat(taken_rows), torch.cat(taken_cols)


@register("dilated_sparse")
def dilated_sparse(
    config: SparsePatternConfig, grid: BlockGrid, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern."""
    counts = grid.visible_rows(ratio_budget(config, grid).blocks()).to(device)
    return take_first(Orders(config, grid, device), counts)
