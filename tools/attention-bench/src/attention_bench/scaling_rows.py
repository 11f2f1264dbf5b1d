"""ScalingRow: the figures of attention over several GPUs, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import files
from .cases import Case
from .counts import counted
from .report import milliseconds
from .tables import table

KIND = "scaling"
CHECK, ALONE, TIMES = "check", "one rank", "times"  # the parts of a run
BASE = "base module"
SHARE, WHOLE = "one GPU, its share of the tokens", "one GPU, all tokens"
OURS, NO_OVERLAP, KEPT = "ours", "ours, no overlap", "ours, fetched blocks kept"
GATHER, RING = "all-gather", "ring, dense"

DEFINITIONS = (
    "Each cell gives forward / forward and backward, and in brackets how many times as long as `ours` it takes: for one GPU "
    "with all tokens that is strong scaling. For one GPU with the tokens of one rank the brackets give weak scaling "
    "efficiency: active block pairs times heads, per second and GPU, over those of that one GPU, at the same ratio. Times are "
    "those of the slowest rank, medians of calls in turn. Moved are the tokens whose keys and values a rank fetches for a "
    "forward, the most of all ranks, over those of the other ranks, which an all-gather and a ring move whole. Memory is the "
    "peak above the inputs, of `ours` / `all-gather`."
)


@dataclass
class ScalingRow:
    """The figures of a peer on `ranks` GPUs; None if not measured. Times in ms, of the slowest rank.

    case: all tokens; the row of one GPU with its share of them has the case of all tokens too.
    active_blocks: of a head, of the tokens that the peer had; None if dense.
    rate: active block pairs times heads, per second and GPU.
    weak: the rate over that of one GPU with the same tokens per GPU.
    strong: the time of one GPU with all tokens over this one.
    of_base: the time over that of the base module.
    moved: tokens that a rank fetches for a forward, the most of all, over those of the other ranks.
    error: of the output, relative to the first peer's; in the part "check" the largest of the output and gradients, relative
        to one GPU.
    peak_bytes: peak memory above the inputs, the most of all ranks.
    """

    peer: str
    case: Case
    ranks: int
    part: str = TIMES
    active_blocks: int | None = None
    forward_ms: float | None = None
    both_ms: float | None = None  # forward and backward
    forward_rate: float | None = None
    both_rate: float | None = None
    weak_forward: float | None = None
    weak_both: float | None = None
    strong_forward: float | None = None
    strong_both: float | None = None
    forward_of_base: float | None = None
    both_of_base: float | None = None
    moved: float | None = None
    error: float | None = None
    peak_bytes: int | None = None
    forward_rounds: int | None = None
    both_rounds: int | None = None
    note: str | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.forward_ms is not None or self.both_ms is not None or self.error is not None

    def set_rates(self) -> None:
        """The rates, where the time and the active blocks are known."""
        if self.active_blocks is None:
            return
        pairs = self.active_blocks * self.case.heads * self.case.batch
        n_gpus = 1 if self.peer in (SHARE, WHOLE) else self.ranks
        for name in ("forward", "both"):
            ms = getattr(self, f"{name}_ms")
            if ms is not None:
                setattr(self, f"{name}_rate", pairs / (ms / 1000) / n_gpus)


def compare(rows: list[ScalingRow]) -> None:
    """Set what follows from the times of the peers of a case."""
    by_name = {row.peer: row for row in rows}
    for row in rows:
        row.set_rates()
    for row in rows:
        for name in ("forward", "both"):
            rate, ms = getattr(row, f"{name}_rate"), getattr(row, f"{name}_ms")
            share_rate = getattr(by_name.get(SHARE), f"{name}_rate", None)
            whole_ms = getattr(by_name.get(WHOLE), f"{name}_ms", None)
            base_ms = getattr(by_name.get(BASE), f"{name}_ms", None)
            if rate and share_rate and row.peer not in (SHARE, WHOLE):
                setattr(row, f"weak_{name}", rate / share_rate)
            if ms and whole_ms and row.active_blocks is not None and row.peer not in (SHARE, WHOLE):
                setattr(row, f"strong_{name}", whole_ms / ms)
            if ms and base_ms and row.peer != BASE:
                setattr(row, f"{name}_of_base", ms / base_ms)


def read_json(path: str) -> tuple[list[ScalingRow], dict[str, Any]]:
    return files.read_rows(path, KIND, ScalingRow, Case)


# ---- tables

COLUMNS = (OURS, NO_OVERLAP, KEPT, GATHER, RING, WHOLE, SHARE)
HEADINGS = ["tokens", "blocks kept", "GPUs", *COLUMNS, "moved", "memory"]


def pair(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """Two numbers as "forward / forward and backward"; "-" where both are missing."""
    if all(value is None for value in values):
        return "-"
    return " / ".join("-" if value is None else text(value) for value in values)


def times(row: ScalingRow | None, ours: ScalingRow | None) -> str:
    """The times of a row, and how they compare with ours."""
    if row is None:
        return "-"
    if row.forward_ms is None and row.both_ms is None:
        return "none"
    text = f"{pair((row.forward_ms, row.both_ms), milliseconds)} ms"
    if ours is None or ours is row:
        return text
    if row.peer == SHARE:
        return f"{text} ({pair((ours.weak_forward, ours.weak_both), factor)})"
    of_ours = [
        theirs / mine if theirs and mine else None
        for theirs, mine in ((row.forward_ms, ours.forward_ms), (row.both_ms, ours.both_ms))
    ]
    return f"{text} ({pair(of_ours, factor)} x)"


def factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def cells(rows: Sequence[ScalingRow]) -> list[str]:
    """The peers of one case."""
    of = {row.peer: row for row in rows}
    case, ours = rows[0].case, of.get(OURS)
    moved = None if ours is None else ours.moved
    peaks = [None if row is None else row.peak_bytes for row in (ours, of.get(GATHER))]
    memory = pair(peaks, lambda peak: f"{peak / 2**30:,.1f}")
    return [
        f"{case.seqlen:,}",
        f"{case.density:.2%}",
        str(rows[0].ranks),
        *(times(of.get(name), ours) for name in COLUMNS),
        "-" if moved is None else f"{moved:.1%}",
        memory if memory == "-" else f"{memory} GiB",
    ]


def grouped(rows: Sequence[ScalingRow]) -> list[list[ScalingRow]]:
    """The rows of each case."""
    found: dict[tuple[Case, int], list[ScalingRow]] = {}
    for row in rows:
        found.setdefault((row.case, row.ranks), []).append(row)
    return list(found.values())


def notes(rows: Sequence[ScalingRow]) -> list[str]:
    """What is said below the table."""
    lines = [] if not rows else [f"{rows[0].case.label_of_heads}".removesuffix(".") + ".", DEFINITIONS, ""]
    errors = [f"{row.peer} {row.error:.1e}" for row in rows if row.part == CHECK and row.error is not None]
    if errors:
        lines.append(
            f"- Largest relative error of the output and the gradients, beside one GPU: {', '.join(errors)}."
        )
    for of_case in grouped([row for row in rows if row.part == ALONE]):
        shown = []
        for row in of_case:
            over = pair((row.forward_of_base, row.both_of_base), lambda share: f"{share - 1:+.1%}")
            shown.append(f"{row.peer} {times(row, None)}" + ("" if over == "-" else f" ({over})"))
        case = of_case[0].case
        lines.append(f"- One rank, {case.seqlen:,} tokens, {case.density:.2%} kept: {', '.join(shown)}.")
    lines += [
        f"- {peer}: {note}." for peer, note in dict.fromkeys((row.peer, row.note) for row in rows) if note
    ]
    for row in rows:
        if row.refused is not None:
            part = "" if row.part == TIMES else f" ({row.part})"
            lines.append(f"- {row.peer}, {row.case.seqlen:,} tokens{part}: {row.refused}.")
    return lines


def markdown(rows: list[ScalingRow], where: dict[str, Any]) -> str:
    """A Markdown table with one line per case, and what was found beside it."""
    lines = map(cells, grouped([row for row in rows if row.part == TIMES]))
    return table(HEADINGS, lines, where) + "\n" + "\n".join(notes(rows)) + "\n"


def line(row: ScalingRow) -> str:
    """A row for the terminal."""
    shown = [] if row.part == CHECK else [times(row, None)]
    for name, first, second in (
        ("weak scaling", row.weak_forward, row.weak_both),
        ("strong scaling", row.strong_forward, row.strong_both),
        ("of the base module", row.forward_of_base, row.both_of_base),
    ):
        if first is not None or second is not None:
            shown.append(f"{name} {pair((first, second), factor)}")
    if row.moved is not None:
        shown.append(f"moved {row.moved:.1%}")
    if row.error is not None:
        shown.append(f"error {row.error:.1e}")
    if row.refused is not None:
        shown.append(row.refused)
    part = "" if row.part == TIMES else f", {row.part}"
    return f"{row.case.seqlen:,} tokens, {row.case.density:.2%}, {counted(row.ranks, 'rank')}{part}: {row.peer}: {', '.join(shown)}"
