"""Times peers on cases: `attention-bench [run]`."""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from rich.console import Console

from . import measure, options, report
from .cases import Case
from .environment import environment
from .peers import PEERS
from .presets import PRESETS

DEFAULT_PEERS = {"cuda": ["ours", "flex", "fa4"], "cpu": ["ours", "flex", "sdpa"]}
EPILOG = """\
other commands: plot and markdown show the figures of a file; breakeven finds the density at which dense attention
is as fast; long times one problem as large as the GPU holds; host times the Python of a call; determinism compares
runs bit by bit; tune finds the fastest tiles of the kernels. Each has a --help.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attention-bench",
        description="Time block-sparse attention libraries in one run and on one mask.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        metavar="NAME",
        help=f"lists of cases: {', '.join(PRESETS)} (default: kernels on a GPU, cpu elsewhere)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        metavar="PEER",
        help=f"of {', '.join(PEERS)} (default: ours, flex and fa4 or, on a CPU, sdpa)",
    )
    options.add_device(parser)
    options.add_threads(parser)
    options.add_case(parser, "this and the following make one case of their own, from the preset's first one")
    parser.add_argument("--forward-only", action="store_true", help="no backward, no memory")
    parser.add_argument(
        "--repeat-ms", type=float, default=60.0, help="time spent on each figure (default 60)"
    )
    parser.add_argument(
        "--rounds",
        type=options.positive,
        default=1,
        help="times to go through all cases, of which the medians count: a card that grows warm in a run slows down the "
        "later ones; in every other round the last peer comes first (default 1)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures with device, versions and date")
    return parser


def chosen_cases(given: argparse.Namespace, device: str) -> list[Case]:
    """The cases of the presets; with a shape option one case, the first of them with the options given."""
    names = given.preset or ["kernels" if device == "cuda" else "cpu"]
    cases = list(dict.fromkeys(case for name in names for case in PRESETS[name]))
    return [options.case_of(given, cases[0])] if options.has_case(given) else cases


def main(arguments: list[str]) -> int:
    given = build_parser().parse_args(arguments)
    device = options.device_of(given)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    found: dict[tuple[Case, str], list[measure.Row]] = {}
    command = options.command_line("attention-bench", arguments, given.json)
    names, cases = given.peers or DEFAULT_PEERS[device], chosen_cases(given, device)
    for place, case in itertools.product(range(given.rounds), cases):
        layout, layout_ms = measure.build(case, device)
        expected: torch.Tensor | None = None
        in_order = names[::-1] if place % 2 else names
        if device == "cpu":
            together = [PEERS[name] for name in in_order]
            for row in measure.measure_in_turn(
                together, case, layout, layout_ms, given.repeat_ms, not given.forward_only
            ):
                found.setdefault((case, row.peer), []).append(row)
                print(report.line(row), flush=True)
        else:
            for name in in_order:
                row, expected = measure.measure(
                    PEERS[name],
                    case,
                    layout,
                    layout_ms,
                    device,
                    expected,
                    given.repeat_ms,
                    not given.forward_only,
                )
                measure.free(device)
                found.setdefault((case, name), []).append(row)
                print(report.line(row), flush=True)
        rows = [measure.median_row(tries) for tries in found.values()]
        if given.json:
            report.write_json(given.json, rows, environment(device, command))
    Console(width=None if sys.stdout.isatty() else 180).print(report.table(rows))
    return 0
