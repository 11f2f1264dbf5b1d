"""The blocks of `dilated_sparse`, the pattern that is written, in plain integers: the codemod does not need torch.

The rule is that of dilated_attention_pytorch/patterns/dilated_sparse.py; the tests compare the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

LEAST = {False: 2, True: 3}  # causal -> the least number of blocks of a row that has as many
BITS = 32  # of the mirrored row number


def exact(ratio: float) -> Fraction:
    """The ratio as exactly the decimal that was written."""
    return Fraction(repr(ratio))


def available(n_blocks: int, causal: bool) -> int:
    """Block pairs that dense attention computes."""
    return n_blocks * (n_blocks + 1) // 2 if causal else n_blocks**2


def share(ratio: float, n_blocks: int, causal: bool, rows: int | None = None) -> int:
    """Blocks that the ratio alone pays for in the first rows; by default in all rows."""
    rows = n_blocks if rows is None else rows
    pairs = available(rows, True) if causal else rows * n_blocks
    fraction = exact(ratio)
    return pairs * fraction.numerator // fraction.denominator


def floor(n_blocks: int, causal: bool, rows: int | None = None) -> int:
    """Blocks of the first rows if each keeps the least number."""
    rows = n_blocks if rows is None else rows
    if not causal:
        return rows * min(LEAST[causal], n_blocks)
    short = min(rows, LEAST[causal])
    return available(short, True) + (rows - short) * LEAST[causal]


def total(ratio: float, n_blocks: int, causal: bool, rows: int | None = None) -> int:
    """Blocks kept in the first rows. The share is convex in the number of rows, so its maximum is at an end."""
    return max(share(ratio, n_blocks, causal, rows), floor(n_blocks, causal, rows))


def ruler(scales: Sequence[int], n_blocks: int) -> Iterator[int]:
    """The ruler sequence of the scales from 2 to half the sequence: every second entry is the first, and so on."""
    longer = sorted(scale for scale in scales if 1 < scale <= n_blocks // 2) or [2]
    for step in itertools.count(1):
        trailing_zeros = (step & -step).bit_length() - 1
        yield longer[min(trailing_zeros, len(longer) - 1)]


def links(scales: Sequence[int], n_blocks: int) -> list[int]:
    """Not causal: the offset of the block to which each block links; the links form one cycle through all blocks."""
    sides: tuple[list[int], list[int]] = ([], [])  # blocks that look ahead, blocks that look back
    begin = 0
    for run, scale in enumerate(ruler(scales, n_blocks)):
        end = min(n_blocks, begin + scale - 1)
        sides[run % 2].extend(range(begin, end))
        begin = end
        if begin == n_blocks:
            break
    cycle = sides[0] + sides[1][::-1]
    link = [0] * n_blocks
    for block, following in zip(cycle, cycle[1:] + cycle[:1]):
        link[block] = following - block
    return link


def later_offsets(scales: Sequence[int], n_blocks: int) -> list[int]:
    """The distances of rounds 2, 3, ..., then the nearest ones; each once, and none of round 1."""
    round_1 = set(scales)
    rounds = range(2, (n_blocks - 1) // min(scales) + 1)
    multiples = (turn * scale for turn in rounds for scale in scales if turn * scale < n_blocks)
    ordered = dict.fromkeys(itertools.chain(multiples, range(1, n_blocks)))
    return [offset for offset in ordered if offset not in round_1]


def first_of_round(row: int, n_offsets: int) -> int:
    """The index of the offset of round 1 with which a row begins."""
    return n_offsets * int(f"{row:0{BITS}b}"[::-1], 2) >> BITS


def rows_of(ratio: float, rates: Sequence[int], n_blocks: int, causal: bool) -> list[list[int]]:
    """The blocks that each row keeps, in ascending order."""
    scales = list(dict.fromkeys(rates))
    signs = (-1,) if causal else (-1, 1)
    round_1 = [sign * scale for scale in scales if scale < n_blocks for sign in signs]
    later = [sign * offset for offset in later_offsets(scales, n_blocks) for sign in signs]
    link_of = [-1] * n_blocks if causal else links(scales, n_blocks)
    rows, before = [], 0
    for row, link in enumerate(link_of):
        after = total(ratio, n_blocks, causal, row + 1)
        count, before = after - before, after
        last = row if causal else n_blocks - 1
        if count == last + 1:
            rows.append(list(range(count)))
            continue
        nearest = [row] + ([row + link] if link and row + link >= 0 else [])
        turned = [row + offset for offset in round_1 if offset != link and 0 <= row + offset <= last]
        begin = first_of_round(row, len(turned))
        columns = [*nearest, *turned[begin:], *turned[:begin]][:count]
        if len(columns) < count:
            rest = (row + offset for offset in later if offset != link and 0 <= row + offset <= last)
            columns += itertools.islice(rest, count - len(columns))
        rows.append(sorted(columns))
    return rows
