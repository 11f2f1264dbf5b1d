"""CircleOfBlocks: the blocks that no rank holds yet, in their order on a circle, and which window of them a rank takes.

Of all windows of n / R blocks on a circle of n, the mean cost is an R-th of the whole. From one window to the next the cost
changes by no more than a row, so there is one that costs just about that. Without it the rest is a circle again: every rank
gets equal numbers of blocks at equal costs, and as each window is cut out with two cuts, about two chunks a rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Ranges = list[tuple[int, int]]
MOST_SAMPLES = 2048  # windows that are looked at before the best is looked for between them


class Window(NamedTuple):
    """A window on the circle."""

    start: int
    length: int
    miss: int = 0
    """By how many steps its cost misses what was asked for."""


class CircleOfBlocks:
    """Blocks in ascending order, the first again behind the last. A place is the number of blocks before.

    Attributes:
        runs: the ranges (first block, one behind the last) that are left.
        holds_last: whether the last of all blocks is left.
        length: the number of blocks that are left.
        cost: what all of them cost.
    """

    def __init__(self, costs: Tensor, runs: Ranges) -> None:
        """costs: int64 (n_blocks,), of all blocks."""
        self.sums = torch.nn.functional.pad(costs.cumsum(0), (1, 0))
        self.n_blocks = costs.numel()
        self._set(runs)

    @property
    def holds_last(self) -> bool:
        return bool(self.runs) and self.runs[-1][1] == self.n_blocks

    def _set(self, runs: Ranges) -> None:
        self.runs = runs
        self.firsts, stops = torch.tensor(runs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        sizes = stops - self.firsts
        self.ends = sizes.cumsum(0)  # places
        self.begins = self.ends - sizes
        costs = self.sums[stops] - self.sums[self.firsts]
        self.before = costs.cumsum(0) - costs
        self.length, self.cost = int(sizes.sum()), int(costs.sum())

    def _costs_before(self, places: Tensor) -> Tensor:
        """The cost of all blocks before each place, which may lie on the second lap."""
        laps = places // self.length
        places = places - laps * self.length
        run = torch.searchsorted(self.ends, places, right=True)
        within = self.firsts[run] + places - self.begins[run]
        return self.cost * laps + self.before[run] + self.sums[within] - self.sums[self.firsts[run]]

    def costs(self, starts: Tensor, length: int) -> Tensor:
        """What the windows cost."""
        return self._costs_before(starts + length) - self._costs_before(starts)

    def chunks(self, starts: Tensor, length: int) -> Tensor:
        """How many chunks each window makes: the runs it has a part of, and the rests of those that it cuts."""
        last = starts + length - 1
        laps, last = last // self.length, last % self.length
        first_run, last_run = (torch.searchsorted(self.ends, x, right=True) for x in (starts, last))
        cuts = (starts != self.begins[first_run]).long() + (last + 1 != self.ends[last_run]).long()
        return last_run + laps * len(self.runs) - first_run + 1 + cuts

    def starts(self, length: int, first: int = 0, stop: int | None = None) -> Tensor:
        """Places from `first` to before `stop` that windows may start at, ascending: where one begins or ends with a run, and others."""
        stop = self.length if stop is None else stop
        others = torch.arange(first, stop, max(1, self.length // MOST_SAMPLES))
        aligned = torch.cat([self.begins, (self.ends - length) % self.length])
        found: Tensor = torch.cat([others, aligned[(aligned >= first) & (aligned < stop)]]).unique()
        return found

    def closest(self, length: int, cost: int, step: int, first: int = 0, stop: int | None = None) -> Window:
        """The window whose cost misses `cost` by the fewest steps; of those the one that makes the fewest chunks, then the closest.

        It starts at a place from `first` to before `stop`, of which there must be one.
        """
        starts = self.starts(length, first, stop)
        over = self.costs(starts, length) - cost
        if int(over.abs().min()) > step:
            # between two samples, one too dear and one too cheap, is one that fits
            pairs = ((over[:-1] > 0) != (over[1:] > 0)).nonzero().flatten()
            if pairs.numel():
                pair = pairs[self.chunks(starts[pairs], length).argmin()]
                starts = torch.arange(int(starts[pair]), int(starts[pair + 1]) + 1)
                over = self.costs(starts, length) - cost
        miss = over.abs() // step
        best = first_least(miss, self.chunks(starts, length), over.abs())
        return Window(int(starts[best]), length, int(miss[best]))

    def longest(self, length: int, cost: int) -> Window:
        """The longest window of at most `length` blocks that costs at most `cost`; of those the one that makes the fewest chunks."""
        fits, too_long, tried = 0, length + 1, length
        while fits < tried:
            if int(self.costs(self.starts(tried), tried).min()) <= cost:
                fits = tried
            else:
                too_long = tried
            tried = (fits + too_long) // 2
        if not fits:
            return Window(0, 0)
        starts = self.starts(fits)
        starts = starts[self.costs(starts, fits) <= cost]
        return Window(int(starts[first_least(self.chunks(starts, fits))]), fits)

    def take(self, window: Window) -> Ranges:
        """Cut the window out; its ranges of blocks."""
        stop = window.start + window.length
        spans = [(0, stop - self.length), (window.start, min(stop, self.length))]
        taken: Ranges = []
        left: Ranges = []
        place = 0
        for first, end in self.runs:
            done, behind = first, place + end - first
            for a, b in spans:
                a, b = max(a, place), min(b, behind)
                if a < b:
                    a, b = a - place + first, b - place + first
                    left.append((done, a))
                    taken.append((a, b))
                    done = b
            left.append((done, end))
            place = behind
        self._set([(a, b) for a, b in left if a < b])
        return taken


def first_least(*keys: Tensor) -> int:
    """The first place with the least first key, of those with the least second key, and so on."""
    places = torch.arange(keys[0].numel())
    for key in keys:
        places = places[key[places] == key[places].min()]
    return int(places[0])
