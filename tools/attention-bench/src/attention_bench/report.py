"""Rows as a table for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from . import files
from .cases import Case
from .environment import footnote
from .measure import Row

KIND = files.RUN


def write_json(path: str, rows: list[Row], where: dict[str, Any]) -> None:
    """Write all figures atomically."""
    files.write(path, KIND, rows, where)


def read_json(path: str) -> tuple[list[Row], dict[str, Any]]:
    """The inverse of `write_json`."""
    return files.read_rows(path, KIND, Row, Case)


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rate(value: float | None) -> str:
    """TFLOP/s, with enough digits for a CPU."""
    return "-" if value is None else format(value, ".0f" if value >= 10 else ".2g")


def milliseconds(value: float) -> str:
    return format(value, ",.0f" if value >= 100 else ".3g")


def labels(rows: list[Row]) -> dict[Case, str]:
    """Labels of the cases, with the dtype if there are several."""
    cases = list(dict.fromkeys(row.case for row in rows))
    several = len({case.dtype for case in cases}) > 1
    return {case: f"{case.label}, {case.dtype}" if several else case.label for case in cases}


def share(rows: list[Row], of: str, direction: str) -> list[tuple[float, Case]]:
    """Times of `ours` divided by those of the peer `of`, with the case, the largest first."""
    name = f"{direction}_ms"
    times = {(row.case, row.peer): getattr(row, name) for row in rows if getattr(row, name) is not None}
    found = [
        (ms / times[case, of], case)
        for (case, peer), ms in times.items()
        if peer == "ours" and (case, of) in times
    ]
    return sorted(found, key=lambda each: -each[0])


def cell(row: Row | None, ours: Row | None) -> str:
    """The times and rates of a peer on a case, bold where another library is ahead of ours."""
    if row is None:
        return "none / none"
    is_other = not row.peer.startswith("ours")
    cells = []
    for direction in ("forward", "backward"):
        ms, speed = getattr(row, f"{direction}_ms"), getattr(row, f"{direction}_tflops")
        if ms is None:
            cells.append("none")
            continue
        text = f"{milliseconds(ms)} ms ({rate(speed)})"
        ours_ms = None if ours is None else getattr(ours, f"{direction}_ms")
        cells.append(f"**{text}**" if is_other and ours_ms is not None and ms < ours_ms else text)
    return " / ".join(cells)


def markdown(rows: list[Row], where: dict[str, Any]) -> str:
    """A Markdown table with one line per case and one column per peer; bold is what is ahead of ours."""
    peers = list(dict.fromkeys(row.peer for row in rows))
    names = {row.peer: row.peer + (", dense" if row.dense else "") for row in rows}
    lines = [
        "| case | " + " | ".join(names[peer] for peer in peers) + " |",
        "|---|" + "---|" * len(peers),
    ]
    for case, label in labels(rows).items():
        found = {row.peer: row for row in rows if row.case == case}
        cells = [cell(found.get(peer), found.get("ours")) for peer in peers]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    bold = "Bold: less time than `ours`.\n\n" if any("**" in line for line in lines) else ""
    return "\n".join(lines) + "\n\n" + bold + footnote(where)


def table(rows: list[Row]) -> Table:
    """A terminal table with one line per peer and case."""
    made = Table(
        title="TFLOP/s: active blocks only, backward counts 2.5 times the forward; dense peers count every pair"
    )
    for name in (
        "case",
        "peer",
        "fwd ms",
        "fwd TFLOP/s",
        "bwd ms",
        "bwd TFLOP/s",
        "peak MB",
        "mask ms",
        "err",
        "grad err",
        "note",
    ):
        made.add_column(
            name, justify="left" if name in ("case", "peer", "note") else "right", overflow="fold"
        )
    last: Case | None = None
    names = labels(rows)
    for row in rows:
        made.add_row(
            "" if row.case == last else names[row.case],
            row.peer + (" (dense)" if row.dense else ""),
            number(row.forward_ms, ".3f"),
            rate(row.forward_tflops),
            number(row.backward_ms, ".3f"),
            rate(row.backward_tflops),
            number(None if row.peak_bytes is None else row.peak_bytes / 2**20, ",.0f"),
            number(row.mask_ms, ".1f"),
            number(row.error, ".0e"),
            number(row.grad_error, ".0e"),
            row.refused or "",
        )
        last = row.case
    return made


def line(row: Row) -> str:
    """A row as plain text, printed as soon as it is measured."""
    return (
        f"{row.case.label}: {row.peer} fwd {number(row.forward_ms, '.3f')} ms {rate(row.forward_tflops)} "
        f"TFLOP/s, bwd {number(row.backward_ms, '.3f')} ms {rate(row.backward_tflops)} TFLOP/s, "
        f"err {number(row.error, '.0e')}, of gradients {number(row.grad_error, '.0e')}"
        + (f", refused: {row.refused}" if row.refused else "")
    )
