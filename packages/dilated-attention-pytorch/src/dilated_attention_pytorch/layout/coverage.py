"""Coverage: which block pairs stacked layers of a layout connect.

What each block row reaches is a row of bits, 64 columns to an int64, and a layer more is an OR over the row's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import values
from ..grid import BlockGrid

WORD = 64  # columns to an int64
# Bound of the bits that a layer gathers: columns are processed in groups.
MAX_GATHERED_BYTES = 2**26


@dataclass(frozen=True)
class Links:
    """Which columns a block row of any head sees: `rows` and `cols`, int64 (n,), sorted by row, no pair twice.

    `sources` (m, 2) and `levels`, each (m', 2): to add a layer, gather `x[sources]` and OR each pair; repeat with every
    level. Each level halves the rows that are left to combine.
    """

    rows: Tensor
    cols: Tensor
    sources: Tensor
    levels: list[Tensor]


def make_links(grid: BlockGrid, rows: Tensor, cols: Tensor) -> Links:
    """The links of the active blocks of all heads, int64 (n,) each, in any order."""
    n_rows, n_cols = grid.n_rows, grid.n_cols
    pairs = rows * n_cols + cols
    if bool((pairs.diff() <= 0).any()):  # of several heads
        pairs = torch.unique(pairs)
        rows, cols = pairs // n_cols, pairs % n_cols
    counts = torch.bincount(rows, minlength=n_rows)
    # a row without blocks takes one from behind the last column, where there are no bits
    lengths = counts.clamp(min=1)
    sources = torch.full((int(lengths.sum()),), n_cols, dtype=torch.int64, device=cols.device)
    starts = lengths.cumsum(0) - lengths
    within = torch.arange(rows.numel(), device=cols.device) - (counts.cumsum(0) - counts)[rows]
    sources[starts[rows] + within] = cols
    levels = list(halvings(lengths))
    return Links(rows, cols, sources[levels[0]], levels[1:])


def halvings(lengths: Tensor) -> Iterator[Tensor]:
    """Pairs of places, (m, 2), that halve consecutive pieces of these lengths until each has one element.

    The last of an odd number is paired with itself, which leaves its bits unchanged. There is always at least one level.
    """
    while True:
        starts, halves = lengths.cumsum(0) - lengths, (lengths + 1) // 2
        piece = torch.repeat_interleave(halves)
        left = starts[piece] + 2 * (
            torch.arange(piece.numel(), device=lengths.device) - (halves.cumsum(0) - halves)[piece]
        )
        yield torch.stack([left, torch.minimum(left + 1, (starts + lengths - 1)[piece])], 1)
        if int(halves.max()) == 1:
            return
        lengths = halves


def layer_more(links: Links, seen: Tensor) -> Tensor:
    """The bits, (n_rows, words), one layer farther than `seen`, and those of `seen`."""
    wider = torch.cat([seen, seen.new_zeros(1, seen.shape[1])])
    for pairs in (links.sources, *links.levels):
        wider = wider[pairs[:, 0]] | wider[pairs[:, 1]]
    return wider | seen


def groups(grid: BlockGrid, links: Links) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group of columns, the bits of one layer and those of all allowed pairs, (n_rows, words) each."""
    n_words = -(-grid.n_cols // WORD)
    size = max(1, min(n_words, MAX_GATHERED_BYTES // (16 * links.sources.shape[0])))
    for first in range(0, n_words, size):
        n = min(size, n_words - first)
        yield one_layer(grid, links, first, n), allowed(grid, first, n, links.rows.device)


def one_layer(grid: BlockGrid, links: Links, first: int, n_words: int) -> Tensor:
    """Bits of the columns that each row sees."""
    seen = torch.zeros(grid.n_rows * n_words, dtype=torch.int64, device=links.rows.device)
    word = links.cols // WORD - first
    here = (word >= 0) & (word < n_words)
    bits = torch.ones_like(links.cols[here]) << links.cols[here] % WORD
    # pairs are distinct, so the sum of their bits is their OR
    return seen.index_add_(0, links.rows[here] * n_words + word[here], bits).view(-1, n_words)


def allowed(grid: BlockGrid, first: int, n_words: int, device: torch.device) -> Tensor:
    """Bits of the pairs that dense attention with the same lengths and causality connects."""
    end = torch.full((grid.n_rows,), grid.n_cols, dtype=torch.int64, device=device)
    if grid.causal:
        end = (torch.arange(grid.n_rows, device=device) + grid.first_row + 1).clamp(max=grid.n_cols)
    before = WORD * torch.arange(first, first + n_words, device=device)
    count = (end[:, None] - before).clamp(0, WORD)
    return torch.where(count == WORD, -1, (1 << count % WORD) - 1)


def count_bits(words: Tensor) -> int:
    """The number of bits that are set."""
    of_byte = sum((torch.arange(256, device=words.device) >> bit) & 1 for bit in range(8))
    found = torch.bincount(words.contiguous().view(torch.uint8).flatten(), minlength=256)
    return int((found * of_byte).sum())


def check_square(grid: BlockGrid) -> None:
    if grid.q_len != grid.kv_len:
        raise ValueError(
            f"q_len {grid.q_len} and kv_len {grid.kv_len} differ: such layers do not stack; ask for coverage(1)"
        )


def coverage(grid: BlockGrid, rows: Tensor, cols: Tensor, layers: int) -> float:
    """Fraction of allowed block pairs connected within `layers` layers; rows and cols as for `make_links`."""
    number = values.integer(layers)
    if number is None or number < 1:
        raise values.wrong(number, f"layers must be a number of at least 1, got {values.shown(layers)}")
    layers = number
    if layers > 1:
        check_square(grid)
    links, connected, total = make_links(grid, rows, cols), 0, 0
    for seen, wanted in groups(grid, links):
        for _ in range(layers - 1):
            wider = layer_more(links, seen)
            if torch.equal(wider, seen):
                break
            seen = wider
        connected += count_bits(seen & wanted)
        total += count_bits(wanted)
    return connected / total


def hops_to_full_coverage(grid: BlockGrid, rows: Tensor, cols: Tensor) -> int | None:
    """Fewest layers that connect every allowed pair, or None; rows and cols as for `make_links`."""
    check_square(grid)
    links, most = make_links(grid, rows, cols), 1
    for seen, wanted in groups(grid, links):
        hops = 1
        while bool((wanted & ~seen).any()):
            wider = layer_more(links, seen)
            if torch.equal(wider, seen):
                return None
            seen, hops = wider, hops + 1
        most = max(most, hops)
    return most
