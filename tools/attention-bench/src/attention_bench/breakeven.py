"""The density up to which a sparse call is faster than a dense one, from the figures of a run of both."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

from .cases import Case
from .measure import Row

Curve = list[tuple[float, float]]  # (density, ms), by density
PASSES = ("forward", "forward and backward")


def crossing(curve: Curve, level: float) -> float | None:
    """The density at which the time reaches `level`, by linear interpolation; None if it never does."""
    if curve[0][1] >= level:
        return curve[0][0]
    for (below, before), (above, after) in itertools.pairwise(curve):
        if after >= level:
            return below + (level - before) / (after - before) * (above - below)
    return None


def times(row: Row) -> tuple[float | None, float | None]:
    """Milliseconds of the forward, and of forward and backward together; None if not measured."""
    both = None if row.forward_ms is None or row.backward_ms is None else row.forward_ms + row.backward_ms
    return row.forward_ms, both


def curves(rows: list[Row], peer: str) -> dict[Case, tuple[Curve, Curve]]:
    """The times of a peer by density, for every group of cases that differ only in density."""
    found: dict[Case, tuple[Curve, Curve]] = {}
    for row in sorted(rows, key=lambda row: row.case.density):
        if row.peer == peer:
            both = found.setdefault(replace(row.case, density=1.0), ([], []))
            for curve, ms in zip(both, times(row), strict=True):
                if ms is not None:
                    curve.append((row.case.density, ms))
    return found


def in_words(curve: Curve, level: float) -> str:
    """Where the curve crosses the level, as the end of a sentence."""
    density = crossing(curve, level)
    if density is None:
        return f"at every density up to {curve[-1][0]:.0%}"
    if density == curve[0][0]:
        return f"not even at {density:.0%} of the blocks"
    return f"up to {density:.0%} of the blocks"


def lines(rows: list[Row], peer: str, dense: str) -> list[str]:
    """One Markdown list item per case; the dense time is the median over the densities."""
    items = []
    levels = curves(rows, dense)
    for case, sparse in curves(rows, peer).items():
        parts = []
        for name, curve, at_dense in zip(PASSES, sparse, levels.get(case, ([], [])), strict=True):
            if len(curve) > 1 and at_dense:
                found = [ms for _, ms in at_dense]
                level = statistics.median(found)
                span = f"{min(found):.3g} to {max(found):.3g} ms, median {level:.3g}"
                parts.append(f"{name} {in_words(curve, level)} ({dense}: {span})")
        if parts:
            items.append(
                f"- {case.label_without_density}: {peer} takes less time than dense {dense}: {'; '.join(parts)}."
            )
    return items
