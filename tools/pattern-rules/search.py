"""Compare fixed rules that distribute the scales of dilated_sparse over the rows.

Every row keeps its diagonal block. A rule says which block a row links to, and at which offset it starts round 1. The
tables show the layers to full coverage, the share of allowed pairs connected after 2, 4 and 8 layers ("coverage"), and
the different columns that two neighbouring rows load per block that they compute ("loads"; 1: they share none).

    python search.py > RESULTS.md          # half a minute
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

GOLDEN = 0.6180339887498949
CAUSAL_BLOCKS = (3, 4, 5, 6, 8)  # per row
OTHER_BLOCKS = (2, 2.56, 3, 4, 6, 8)  # per row; 2.56 is 1 % of 256 blocks
SIZES = (64, 256, 1024, 2048)  # blocks per sequence
RATES: tuple[tuple[int, ...] | None, ...] = (None, (1, 2, 4, 8), (1, 4, 16, 64), (2, 3, 5))

# ---- the index, of n offsets, at which a row starts round 1


def nearest(row: int, n: int) -> int:
    """All rows start alike, as in version 0.3.0."""
    return 0


def by_row(row: int, n: int) -> int:
    return row % n


def by_pair_of_rows(row: int, n: int) -> int:
    return row // 2 % n


def by_ruler(row: int, n: int) -> int:
    """Half of the rows start at the first offset, a quarter at the second, and so on."""
    return min(((row + 1) & -(row + 1)).bit_length() - 1, n - 1)


def by_golden_ratio(row: int, n: int) -> int:
    return int(row * GOLDEN % 1 * n)


def by_van_der_corput(row: int, n: int) -> int:
    """The van der Corput sequence: the binary digits of the row mirrored at the point, 6 = 110 becomes 0.011."""
    return int(f"{row:032b}"[::-1], 2) * n >> 32


STARTS = (nearest, by_row, by_pair_of_rows, by_ruler, by_golden_ratio, by_van_der_corput)

# ---- the offset of the block that a row links to, if not causal


def previous(n: int, rates: Sequence[int]) -> list[int]:
    return [-1] * n


def alternating(n: int, rates: Sequence[int]) -> list[int]:
    return [1 - 2 * (row % 2) for row in range(n)]


def runs(lengths: Iterable[int], n: int) -> list[int]:
    """Links in one cycle: runs of rows link ahead and back in turn, each to the next row of the same direction."""
    ahead = [flag for i_run, length in zip(itertools.count(), lengths) for flag in [i_run % 2 == 0] * length]
    forward = [row for row in range(n) if ahead[row]]
    cycle = forward + [row for row in reversed(range(n)) if not ahead[row]]
    offsets = dict(
        zip(cycle, (b - a for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)), strict=True)
    )
    return [offsets[row] for row in range(n)]


def even_ahead_odd_back(n: int, rates: Sequence[int]) -> list[int]:
    return runs([1] * n, n)


def runs_by_ruler(n: int, rates: Sequence[int]) -> list[int]:
    """Runs of r - 1 rows, so that the links across them have length r: 2 4 2 8 2 4 2 16 ..."""
    longer = sorted({rate for rate in rates if 1 < rate <= n // 2}) or [2]
    return runs(
        (longer[min((step & -step).bit_length(), len(longer)) - 1] - 1 for step in range(1, n + 1)), n
    )


LINKS = (previous, alternating, even_ahead_odd_back, runs_by_ruler)

# ---- layouts


def signs_in_turn(rates: Sequence[int], link: int) -> list[int]:
    """-r1 +r1 -r2 +r2 ..."""
    return [sign * rate for rate in rates for sign in (-1, 1)]


def other_way_first(rates: Sequence[int], link: int) -> list[int]:
    """Signs against the link, with it, against it, ... (-r1 +r2 -r3 ...), then the opposite ones."""
    sign = -1 if link > 0 else 1
    first = [sign * (1, -1)[i % 2] * rate for i, rate in enumerate(rates)]
    return first + [-offset for offset in first]


ORDERS = (signs_in_turn, other_way_first)


def take(n: int, blocks: Sequence[int], causal: bool, rates: tuple[int, ...] | None, start: Callable[[int, int], int],
         links: Sequence[int], order: Callable[[Sequence[int], int], list[int]]) -> list[list[int]]:  # fmt: skip
    """The columns of every row under a rule."""
    scales = rates or tuple(2**power for power in range(max(1, (n - 1).bit_length())))
    later = [sign * t * rate for t in range(2, n) for rate in scales if t * rate < n for sign in (-1, 1)]
    later += [sign * step for step in range(1, n) for sign in (-1, 1)]
    rows = []
    for row in range(n):
        link = -1 if causal else links[row]
        low, high = -row, 0 if causal else n - 1 - row
        round_1 = [x for x in order(scales, link) if low <= x <= high and x != link]
        begin = start(row, len(round_1)) if round_1 else 0
        taken: dict[int, None] = {}
        for offset in itertools.chain([0, link], round_1[begin:], round_1[:begin], later):
            if len(taken) == blocks[row]:
                break
            if low <= offset <= high:
                taken[row + offset] = None
        rows.append(sorted(taken))
    return rows


def budgets(n: int, per_row: float, causal: bool) -> list[int]:
    """The number of blocks of every row."""
    if causal:
        return [min(int(per_row), row + 1) for row in range(n)]
    totals = [max(int(per_row * (row + 1) + 1e-9), 2 * (row + 1)) for row in range(n)]
    return [b - a for a, b in zip([0, *totals], totals, strict=False)]


# ---- figures of a layout


def coverage(
    heads: Sequence[list[list[int]]], causal: bool, max_layers: int = 4096
) -> tuple[int | None, list[float]]:
    """Layers to full coverage by all heads together, and the share of pairs connected after 2, 4 and 8 layers.

    Connected columns are stored as one bit each.
    """
    n = len(heads[0])
    rows = [sorted(set().union(*(head[row] for head in heads))) for row in range(n)]
    width = max(map(len, rows))
    columns = np.array([row + [i] * (width - len(row)) for i, row in enumerate(rows)])
    seen: npt.NDArray[np.uint8] = np.zeros((n, -(-n // 8)), dtype=np.uint8)
    np.bitwise_or.at(seen, (np.arange(n)[:, None], columns // 8), (128 >> columns % 8).astype(np.uint8))
    allowed, shares = (n * (n + 1) // 2 if causal else n * n), []
    for layers in range(1, max_layers):
        connected = int(np.bitwise_count(seen).sum())
        if layers in (2, 4, 8):
            shares.append(connected / allowed)
        wider = np.bitwise_or.reduce(seen[columns], axis=1)
        if connected == allowed or np.array_equal(wider, seen):
            shares += [connected / allowed] * (3 - len(shares))
            return (layers if connected == allowed else None), shares
        seen = wider
    return None, shares


def loads(rows: list[list[int]]) -> float:
    """Different columns of two neighbouring rows, per block."""
    pairs = list(zip(rows[::2], rows[1::2], strict=False))
    return sum(len({*a, *b}) for a, b in pairs) / sum(len(a) + len(b) for a, b in pairs)


def cell(layers: int | None) -> str:
    return "never" if layers is None else str(layers)


def print_table(
    title: str,
    candidates: Sequence[tuple[str, Callable[[int, float], list[list[int]]]]],
    per_row: Sequence[float],
    sizes: Sequence[int],
    causal: bool,
) -> None:
    middle = per_row[2 if per_row[0] == 2 else 1]
    heads = [*(f"{blocks:g} per row" for blocks in per_row), f"coverage at {middle:g} per row", "loads"]
    print(f"\n### {title}\n\n| rule | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for name, make in candidates:
        cells = [
            " / ".join(cell(coverage([make(n, blocks)], causal)[0]) for n in sizes) for blocks in per_row
        ]
        rows = make(256, middle)
        cells += [" ".join(f"{share:.2f}" for share in coverage([rows], causal)[1]), f"{loads(rows):.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


Rates = tuple[int, ...] | None
Rows = list[list[int]]


def causal_rows(start: Callable[[int, int], int], rates: Rates, n: int, per_row: float) -> Rows:
    return take(n, budgets(n, per_row, True), True, rates, start, [-1] * n, signs_in_turn)


def other_rows(
    link: Callable[[int, Sequence[int]], list[int]],
    order: Callable[[Sequence[int], int], list[int]],
    rates: Rates,
    n: int,
    per_row: float,
) -> Rows:
    links = link(n, rates or [2**power for power in range(n.bit_length())])
    return take(n, budgets(n, per_row, False), False, rates, by_van_der_corput, links, order)


def rotated_by(head: int) -> Callable[[int, int], int]:
    return lambda row, n: (by_van_der_corput(row, n) + head) % n


def words(*functions: Callable[..., object]) -> str:
    return ", ".join(function.__name__.replace("_", " ") for function in functions)


def main() -> None:
    print(
        "# How the scales of dilated_sparse are distributed over the rows\n\nWritten by `search.py`, which explains the columns."
    )
    print(
        f"Layers to full coverage of {' / '.join(map(str, SIZES))} blocks; coverage and loads at 256 blocks."
    )
    print("The chosen rules: causal, by van der corput; not causal, runs by ruler with signs in turn.")
    names = {rates: "powers of two" if rates is None else " ".join(map(str, rates)) for rates in RATES}
    for rates in RATES:
        causal = [(words(start), functools.partial(causal_rows, start, rates)) for start in STARTS]
        title = f"Causal, rates {names[rates]}: where a row starts round 1"
        print_table(title, causal, CAUSAL_BLOCKS, SIZES if rates is None else SIZES[:3], True)
    for rates in RATES[:3]:
        other = [
            (words(link, order), functools.partial(other_rows, link, order, rates))
            for link in LINKS
            for order in ORDERS
        ]
        title = f"Not causal, rates {names[rates]}: links and order of round 1"
        print_table(title, other, OTHER_BLOCKS, SIZES[:2], False)
    print("\n### Heads with different `rotation`, causal, powers of two, 3 blocks per row\n")
    print(
        "| heads | layers, 256 blocks | layers, 2,048 blocks | coverage of 2,048 blocks after 2, 4, 8 layers |\n|---|---|---|---|"
    )
    for n_heads in (1, 2, 4, 8):
        found = [
            coverage([causal_rows(rotated_by(head), None, n, 3) for head in range(n_heads)], True)
            for n in (256, 2048)
        ]
        shares = " ".join(f"{share:.2f}" for share in found[1][1])
        print(f"| {n_heads} | {cell(found[0][0])} | {cell(found[1][0])} | {shares} |")


if __name__ == "__main__":
    main()
