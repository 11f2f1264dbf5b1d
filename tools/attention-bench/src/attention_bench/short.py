"""Times short sequences and few heads, where launches and the last tiles count: `attention-bench short`.

Calls follow one another without a pause, eager and as replays of a CUDA graph, and the time is that of all of them over their
number: eager calls of a short problem take as long as the host does. The peers take turns. `both` is forward and backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, measure, options, outcome, report, tables
from .budget import Budget
from .cases import PATTERNS, Case
from .collection import Collection
from .environment import environment
from .peers import PEERS, serving
from .presets import PRESETS

KIND = "short"
DEFAULT_PEERS = {"cuda": ("ours", "fa4", "flex", "cudnn"), "cpu": ("ours", "flex", "sdpa")}
CPU_CASES = [Case(1024, heads, 64, 64, 0.1, dtype="float32", pattern_rates=None) for heads in (2, 4)]
TIMES = ("eager_us", "graph_us", "eager_both_us", "graph_both_us")


@dataclass
class ShortRow:
    """Microseconds per call of a peer; None if not measured. `both`: forward and backward. `graph`: replays of a CUDA graph."""

    peer: str
    case: Case
    dense: bool = False
    eager_us: float | None = None
    graph_us: float | None = None
    eager_both_us: float | None = None
    graph_both_us: float | None = None
    error: float | None = None  # relative to the output of the first sparse peer
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.eager_us is not None


def name_of(figure: str) -> str:
    """What a figure is called: `eager both` for `eager_both_us`."""
    return figure.removesuffix("_us").replace("_", " ")


def per_call_us(call: Callable[[], object], device: str, n_calls: int) -> float:
    """Microseconds per call of calls that follow one another."""
    measure.synchronize(device)
    begin = time.perf_counter()
    for _ in range(n_calls):
        call()
    measure.synchronize(device)
    return (time.perf_counter() - begin) / n_calls * 1e6


def graph_of(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of a call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], object] = graph.replay
    return replay


def both(call: measure.Call) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of a call."""
    q, k, v = (x.clone().requires_grad_() for x in call.inputs)
    return lambda: torch.autograd.grad(call.attend(q, k, v), (q, k, v), call.grad)


def kinds(row: ShortRow, call: measure.Call, device: str) -> dict[str, Callable[[], object]]:
    """What is timed, by the name of the figure; where one fails, the row says why."""
    made: dict[str, Callable[[], object]] = {"eager_us": call.forward}
    attempts: dict[str, Callable[[], Callable[[], object]]] = {"eager_both_us": lambda: both(call)}
    if device == "cuda":
        attempts |= {
            "graph_us": lambda: graph_of(call.forward),
            "graph_both_us": lambda: graph_of(both(call)),
        }
    for name, attempt in attempts.items():
        try:
            made[name] = attempt()
            made[name]()
        except Exception as error:  # the other figures remain valid
            made.pop(name, None)
            row.refused = f"{name_of(name)}: {measure.one_line(error)}"
    return made


def measured(case: Case, names: Sequence[str], device: str, rounds: int, n_calls: int) -> list[ShortRow]:
    """The rows of a case."""
    layout = case.layout(device)
    rows: list[ShortRow] = []
    timed: list[tuple[ShortRow, dict[str, Callable[[], object]]]] = []
    expected = None
    for name in names:
        peer = PEERS[name]
        made, call, expected = measure.prepared(peer, case, layout, 0.0, device, expected)
        row = ShortRow(name, case, peer.dense, error=made.error, refused=made.refused)
        rows.append(row)
        if call is not None:
            timed.append((row, kinds(row, call, device)))
    with outcome.interruptible(rows):
        for name in TIMES:
            calls = [(row, made[name]) for row, made in timed if name in made]
            for (row, _), us in zip(
                calls, in_turns([each for _, each in calls], device, rounds, n_calls), strict=True
            ):
                setattr(row, name, us)
    return rows


def in_turns(calls: Sequence[Callable[[], object]], device: str, rounds: int, n_calls: int) -> list[float]:
    """Medians of microseconds per call; every other round takes the calls in reverse order."""
    taken: list[list[float]] = [[] for _ in calls]
    for i_round in range(rounds):
        in_order = list(zip(calls, taken, strict=True))
        for call, found in in_order[::-1] if i_round % 2 else in_order:
            found.append(per_call_us(call, device, n_calls))
    return [statistics.median(found) for found in taken]


# ---- what is shown


def read_json(path: str) -> tuple[list[ShortRow], dict[str, Any]]:
    return files.read_rows(path, KIND, ShortRow, Case)


HEADINGS = ["case", "library", "forward", "in a graph", "both", "in a graph"]


def cells(row: ShortRow, ours: ShortRow | None) -> list[str]:
    """The figures of a row, bold where they are ahead of ours."""
    shown = []
    for name in TIMES:
        us, ours_us = getattr(row, name), None if ours is None else getattr(ours, name)
        text = "none" if us is None else f"{us:,.1f} us"
        shown.append(f"**{text}**" if us is not None and ours_us is not None and us < ours_us else text)
    return [row.case.label, row.peer + (", dense" if row.dense else ""), *shown]


def markdown(rows: list[ShortRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table; bold is what is ahead of ours."""
    ours = {row.case: row for row in rows if row.peer == "ours"}
    shown = [cells(row, ours.get(row.case)) for row in rows]
    is_ahead = any("**" in cell for each in shown for cell in each)
    return tables.table(HEADINGS, shown, where, ["Bold: less time than `ours`."] if is_ahead else [])


def table(rows: list[ShortRow]) -> Table:
    """A terminal table with one line per peer and case."""
    made = Table(
        title="microseconds per call; in a graph: replays of a CUDA graph; both: forward and backward"
    )
    for name in (
        "case",
        "peer",
        *(name_of(name) for name in TIMES),
        "err",
        "note",
    ):
        is_text = name in ("case", "peer", "note")
        made.add_column(name, justify="left" if is_text else "right", overflow="fold")
    last: Case | None = None
    for row in rows:
        figures = [report.number(getattr(row, name), ",.1f") for name in TIMES]
        made.add_row(
            "" if row.case == last else row.case.label,
            row.peer + (" (dense)" if row.dense else ""),
            *figures,
            report.number(row.error, ".0e"),
            row.refused or "",
        )
        last = row.case
    return made


def line(row: ShortRow) -> str:
    label, peer, *figures = cells(row, None)
    shown = [f"{name_of(name)} {figure}" for name, figure in zip(TIMES, figures, strict=True)]
    return f"{label}: {peer} " + ", ".join(shown) + (f", refused: {row.refused}" if row.refused else "")


# ---- the command


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench short", __doc__)
    options.add_device(parser)
    options.add_threads(parser)
    options.add_case(
        parser,
        "this and the following options leave only the first of the cases of this command, changed accordingly",
        PATTERNS,
    )
    options.add_window(parser)
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER",
        help="default: {} if they serve a case; on a CPU {}".format(*map(" ".join, DEFAULT_PEERS.values())),
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=positive_int, default=7, help="turns of every peer, of which the median is taken (default 7)"
    )  # fmt: skip
    parser.add_argument("--calls", type=positive_int, default=50, help="calls per turn (default 50)")
    options.add_budget(parser)
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a peer has no figures; 130 if interrupted, with the figures so far saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    cases = PRESETS["short"] if device == "cuda" else CPU_CASES
    cases = [options.case_of(given, cases[0])] if options.has_case(given) else cases
    command = options.command_line(parser.prog, arguments, given.json)
    where = environment(device, command)
    found = Collection(parser.prog, KIND, line, given.json, device, where, table=table)
    names = list(dict.fromkeys(given.peers)) if given.peers else serving(DEFAULT_PEERS[device], cases, device)
    return found.collect(
        cases, lambda case: measured(case, names, device, given.rounds, given.calls), Budget(given.budget)
    )
