"""Compares an old hierarchical configuration with the new pattern: blocks kept, reach, layers to full coverage."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache, reduce
from typing import Any

from . import dilated_sparse

MOST_BLOCKS = 2048  # per side; above, reach and layers are not computed
MOST_ROWS = 2**18  # above, the blocks of the removed pattern are not counted
MOST_STEPS = 5_000_000  # for following blocks through layers; takes about a second

Level = dict[str, int]
Levels = tuple[tuple[int, int], ...]  # stride and window of each level, in tokens

LEVELS: dict[str, list[Level]] = {
    "standard": [
        {"stride": 64, "window_size": 256},
        {"stride": 256, "window_size": 1024},
        {"stride": 1024, "window_size": -1},
    ],
    "fine_grained": [
        {"stride": 1, "window_size": 128},
        {"stride": 2, "window_size": 512},
        {"stride": 8, "window_size": 2048},
        {"stride": 32, "window_size": -1},
    ],
    "long_range": [
        {"stride": 1, "window_size": 512},
        {"stride": 8, "window_size": 4096},
        {"stride": 64, "window_size": -1},
    ],
    "ultra_sparse": [
        {"stride": 1, "window_size": 64},
        {"stride": 16, "window_size": 1024},
        {"stride": 256, "window_size": -1},
    ],
}


def levels_of(levels: Sequence[Level]) -> Levels:
    return tuple((level["stride"], level["window_size"]) for level in levels)


def old_rows(levels: Levels, n_blocks: int, block_size: int, causal: bool) -> list[range]:
    """The columns of each row of the removed pattern: all windows surround the same block, so the widest one decides.

    Causal: without the columns in the future.
    """
    in_blocks = {
        (max(1, stride // block_size), n_blocks if window == -1 else max(1, window // block_size) // 2)
        for stride, window in levels
    }
    rows = []
    for row in range(n_blocks):
        halves = [half for stride, half in in_blocks if row % stride == 0]
        if not halves and levels:
            rows.append(range(0))  # no level has this row: it attended to nothing
            continue
        half = max(halves, default=0)  # without any level it kept the diagonal
        rows.append(range(max(0, row - half), min(n_blocks - 1, row if causal else row + half) + 1))
    return rows


def old_blocks(levels: Sequence[Level], seq_len: int, block_size: int = 64, causal: bool = False) -> int:
    """Active blocks of the removed pattern."""
    return sum(map(len, old_rows(levels_of(levels), seq_len // block_size, block_size, causal)))


def new_blocks(ratio: float, seq_len: int, block_size: int = 64, causal: bool = False) -> int:
    """Active blocks of the new pattern: as many as the ratio pays for, but at least the floor of every row."""
    return dilated_sparse.total(ratio, -(-seq_len // block_size), causal)


def bits(columns: Sequence[int]) -> int:
    if len(columns) == columns[-1] - columns[0] + 1:
        return (1 << len(columns)) - 1 << columns[0]
    return sum(1 << column for column in columns)


def layers_to_full_coverage(rows: Sequence[Sequence[int]], causal: bool) -> tuple[int | None, bool]:
    """The number of layers after which every row has reached every block that it may see; None if it never does.

    rows: the columns of each row, ascending. The second value is False if the search was stopped: then more layers than
    the first value are needed.
    """
    if not all(rows):
        return None, True  # a row that sees nothing
    n_blocks, layers = len(rows), 1
    seen = list(map(bits, rows))
    full = [(2 << row) - 1 if causal else (1 << n_blocks) - 1 for row in range(n_blocks)]
    missing = [row for row in range(n_blocks) if seen[row] != full[row]]
    steps = 0
    while missing:
        steps += sum(len(rows[row]) + 6 for row in missing)  # 6: the fixed cost of a row, in blocks
        if steps > MOST_STEPS:
            return layers, False
        wider = seen.copy()
        for row in missing:
            wider[row] = reduce(operator.or_, map(seen.__getitem__, rows[row]))
        if wider == seen:
            return None, True
        seen, layers = wider, layers + 1
        missing = [row for row in missing if seen[row] != full[row]]
    return layers, True


@dataclass(frozen=True)
class Figures:
    """The blocks and the coverage of one pattern at one length. None: not computed above MOST_BLOCKS or MOST_ROWS."""

    seq_len: int
    blocks: int | None
    density: float | None  # as a fraction of the block pairs that dense attention computes
    reach: int | None = None  # tokens between a block and the farthest one that it sees in one layer
    full_coverage: bool | None = None  # whether every position ever reaches every position that it may see
    layers: int | None = None  # layers to full coverage
    more_layers: bool = False  # the search was stopped: more than `layers` are needed

    def __str__(self) -> str:
        if self.blocks is None or self.density is None:
            return f"not computed above {MOST_ROWS:,} blocks a side"
        kept = f"{self.blocks:,} block{'s' * (self.blocks != 1)} ({percent(self.density)})"
        if self.reach is None:
            return f"{kept}, reach and layers not computed above {MOST_BLOCKS:,} blocks a side"
        return f"{kept}, reach {self.reach:,} tokens, {self.coverage()}"

    def coverage(self) -> str:
        if self.layers is None:
            return "never full coverage"
        more = "more than " * self.more_layers
        return f"{more}{self.layers:,} layer{'s' * (self.layers != 1)} to full coverage"


def figures(rows: Sequence[Sequence[int]], seq_len: int, block_size: int, causal: bool) -> Figures:
    blocks = sum(map(len, rows))
    density = blocks / dilated_sparse.available(len(rows), causal)
    if len(rows) > MOST_BLOCKS:
        return Figures(seq_len, blocks, density)
    farthest = max(max(row - columns[0], columns[-1] - row) for row, columns in enumerate(rows) if columns)
    layers, followed = layers_to_full_coverage(rows, causal)
    full = (layers is not None) if followed else None
    return Figures(seq_len, blocks, density, farthest * block_size, full, layers, not followed)


@lru_cache(maxsize=256)
def old_figures(levels: Levels, seq_len: int, block_size: int = 64, causal: bool = False) -> Figures | None:
    """Figures of the removed pattern, with the length rounded down to whole blocks; None if that leaves no block."""
    n_blocks = seq_len // block_size
    if not n_blocks:
        return None
    if n_blocks > MOST_ROWS:
        return Figures(n_blocks * block_size, None, None)
    rows = old_rows(levels, n_blocks, block_size, causal)
    return figures(rows, n_blocks * block_size, block_size, causal)


@lru_cache(maxsize=256)
def new_figures(
    ratio: float, rates: tuple[int, ...], seq_len: int, block_size: int = 64, causal: bool = False
) -> Figures:
    """Figures of the pattern that is written."""
    n_blocks = -(-seq_len // block_size)
    if n_blocks > MOST_BLOCKS:
        blocks = dilated_sparse.total(ratio, n_blocks, causal)
        return Figures(seq_len, blocks, blocks / dilated_sparse.available(n_blocks, causal))
    return figures(dilated_sparse.rows_of(ratio, rates, n_blocks, causal), seq_len, block_size, causal)


@dataclass(frozen=True)
class OldPattern:
    """A removed configuration, as far as it is literal."""

    name: str
    levels: Levels
    guessed: tuple[str, ...] = ()  # what is not literal; the default is assumed for it


def preset_pattern(name: str) -> OldPattern:
    return OldPattern(name, levels_of(LEVELS[name]))


def default_pattern(*guessed: str) -> OldPattern:
    """The configuration of a call without one; also assumed for what is not literal."""
    return OldPattern("default", levels_of(LEVELS["standard"]), guessed)


@dataclass(frozen=True)
class Comparison:
    """An old configuration and the pattern that replaces it."""

    name: str
    levels: Levels
    old_block_size: int
    ratio: float
    rates: tuple[int, ...]
    block_size: int
    guessed: tuple[str, ...] = ()  # arguments that are not literal; their defaults are assumed

    @property
    def old(self) -> str:
        return f"{self.name} ({' and '.join(self.guessed)} not literal)" if self.guessed else self.name

    @property
    def written(self) -> str:
        rates = ", ".join(map(str, self.rates))
        return f"sparsity_ratio {self.ratio}, dilation_rates {rates}, block_size {self.block_size}"

    def before(self, seq_len: int, causal: bool) -> Figures | None:
        return old_figures(self.levels, seq_len, self.old_block_size, causal)

    def after(self, seq_len: int, causal: bool) -> Figures:
        return new_figures(self.ratio, self.rates, seq_len, self.block_size, causal)

    def summary(self, seq_len: int) -> str:
        """Both densities without a causal mask: `default 8.9 % -> 1.0 %: 8.9x fewer blocks`."""
        before, after = self.before(seq_len, False), self.after(seq_len, False)
        assert after.density is not None
        if before is None or before.density is None or not before.blocks:
            return f"{self.old} -> {percent(after.density)}"
        what = "blocks" if self.old_block_size == self.block_size else "pairs of tokens"
        times, comparative = before.density / after.density, "fewer"
        if times < 1:
            times, comparative = 1 / times, "more"
        change = f"{times:.1f}x {comparative} {what}" if times > 1 else f"as many {what}"
        return f"{self.old} {percent(before.density)} -> {percent(after.density)}: {change}"

    def line(self, seq_len: int, causal: bool) -> str:
        """The figures of the old and the new pattern in one line."""
        before, after = self.before(seq_len, causal), self.after(seq_len, causal)
        if before is None:
            old = f"nothing, a block has {self.old_block_size:,} tokens"
        else:
            old = str(before)
            if before.seq_len != seq_len:
                old += f" (at {before.seq_len:,} tokens, a multiple of its blocks)"
        return f"at {seq_len:,} tokens, {'causal' if causal else 'not causal'}: {old} -> {after}"

    def floor_decides(self, seq_len: int, causal: bool) -> bool:
        """Whether rows keep more blocks than the ratio pays for."""
        n_blocks = -(-seq_len // self.block_size)
        paid = dilated_sparse.share(self.ratio, n_blocks, causal)
        return dilated_sparse.total(self.ratio, n_blocks, causal) > paid

    def ratio_decides_from(self, seq_len: int, causal: bool) -> int:
        """The smallest number of tokens, above a length at which the floor decides, from which on the ratio decides."""
        low = high = -(-seq_len // self.block_size)
        while self.floor_decides(high * self.block_size, causal):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.floor_decides(middle * self.block_size, causal):
                low = middle
            else:
                high = middle
        return low * self.block_size + 1

    def warning(self, seq_len: int, causal: bool) -> str | None:
        """The warning if the floor decides and not the ratio; None otherwise."""
        if not self.floor_decides(seq_len, causal):
            return None
        n_blocks = -(-seq_len // self.block_size)
        blocks = dilated_sparse.total(self.ratio, n_blocks, causal)
        paid = dilated_sparse.share(self.ratio, n_blocks, causal)
        return (
            f"at {seq_len:,} tokens, {'causal' if causal else 'not causal'}: the floor of "
            f"{dilated_sparse.LEAST[causal]} blocks per row decides, not sparsity_ratio: {blocks:,} blocks "
            f"({percent(blocks / dilated_sparse.available(n_blocks, causal))}), not the {paid:,} of "
            f"{exact_percent(self.ratio)} %; "
            f"the ratio decides from {self.ratio_decides_from(seq_len, causal):,} tokens on"
        )

    def lines(self, seq_len: int) -> list[str]:
        """The lines for a person: not causal, causal, and a warning for each if the floor decides."""
        both = (False, True)
        found = [self.line(seq_len, causal) for causal in both]
        return [*found, *filter(None, (self.warning(seq_len, causal) for causal in both))]

    def as_dict(self, seq_len: int) -> dict[str, Any]:
        """The figures for JSON and SARIF."""

        def side(causal: bool) -> dict[str, Any]:
            before = self.before(seq_len, causal)
            floor = self.floor_decides(seq_len, causal)
            return {
                "before": None if before is None else asdict(before),
                "after": asdict(self.after(seq_len, causal))
                | {
                    "min_blocks": dilated_sparse.LEAST[causal],
                    "floor_decides": floor,
                    "ratio_decides_from": self.ratio_decides_from(seq_len, causal) if floor else None,
                },
            }

        return {
            "name": self.name,
            "not_literal": list(self.guessed),
            "old_block_size": self.old_block_size,
            "sparsity_ratio": self.ratio,
            "dilation_rates": list(self.rates),
            "block_size": self.block_size,
            "summary": self.summary(seq_len),
            "not_causal": side(False),
            "causal": side(True),
        }


def percent(share: float) -> str:
    """`8.9 %`; two digits for small fractions, and 100 % only for all blocks."""
    value = 100 * share
    text = f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
    return f"{'99.9' if share < 1 and float(text) >= 100 else text} %"


def exact_percent(ratio: float) -> str:
    """The ratio in percent, without rounding."""
    return format(100 * Decimal(repr(float(ratio))), "f").rstrip("0").rstrip(".")
