"""How many blocks an old hierarchical configuration really kept, and how many the new pattern keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Level = dict[str, int]

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


@dataclass(frozen=True)
class Density:
    """Shares of the blocks kept before and after, at one sequence length."""

    name: str
    before: Fraction
    after: Fraction

    def __str__(self) -> str:
        old, new = (f"{100 * float(share):.1f} %" for share in (self.before, self.after))
        return f"{self.name} {old} -> {new}: {float(self.before / self.after):.1f}x fewer blocks"


def old_blocks(levels: Sequence[Level], seq_len: int, block_size: int = 64) -> int:
    """Active blocks of the removed pattern: the levels' windows lie around the same block, so the widest rules."""
    n_blocks = seq_len // block_size
    total = 0
    for row in range(n_blocks):
        first, last = row, row
        for level in levels:
            if row % max(1, level["stride"] // block_size):
                continue
            if level["window_size"] == -1:
                first, last = 0, n_blocks - 1
                break
            half = max(1, level["window_size"] // block_size) // 2
            first, last = min(first, max(0, row - half)), max(last, min(n_blocks - 1, row + half))
        else:
            if not any(row % max(1, level["stride"] // block_size) == 0 for level in levels):
                continue  # no level starts at this row: it attended to nothing
        total += last - first + 1
    return total or n_blocks  # with no level at all it kept the diagonal


@lru_cache(maxsize=256)
def new_blocks(ratio: float, seq_len: int, block_size: int = 64) -> int:
    """Active blocks of the new pattern: exact, at least one per row."""
    n_blocks = -(-seq_len // block_size)
    exact, kept = Fraction(repr(ratio)), 0
    for row in range(1, n_blocks + 1):
        kept = max(kept + 1, int(exact * row * n_blocks))
    return kept


def density(
    name: str,
    levels: Sequence[Level],
    ratio: float,
    seq_len: int,
    block_size: int = 64,
    new_block_size: int | None = None,
) -> Density | None:
    """None for lengths shorter than a block. The new pattern has the old one's block size unless another is given."""
    new_block_size = new_block_size or block_size
    if seq_len < max(block_size, new_block_size):
        return None
    before = old_blocks(levels, seq_len, block_size)
    after = new_blocks(ratio, seq_len, new_block_size)
    return Density(
        name,
        Fraction(before, (seq_len // block_size) ** 2),
        Fraction(after, (seq_len // new_block_size) ** 2),
    )
