"""Times the peers on the cases: `attention-bench [run]`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from dilated_attention_pytorch.cli.arguments import positive_int

from . import measure, options, outcome, report
from .budget import Budget
from .cases import PATTERNS, Case
from .environment import environment
from .measure import Expected, Row
from .peers import PEERS, serving
from .presets import FOR_CPU, PRESETS

DEFAULT_PEERS = {"cuda": ["ours", "flex", "fa4"], "cpu": ["ours", "flex", "sdpa"]}
EPILOG = """\
other commands: plot and markdown show the figures of a file; breakeven finds the density at which dense attention
is as fast; calls times every feature of a call beside the plain call; short times short sequences, eager and in CUDA
graphs; long times a problem as large as the GPU memory allows; decode times steps of decoding; selection times
blocks chosen from the content; video times tiles of a video; models times models of Hugging Face; scaling times one
sequence over several GPUs; plan computes what it moves, holds and computes, without a GPU; host times a call on the
host; determinism compares runs bit by bit; tune finds the fastest tiles of the kernels. Each has a --help.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser(
        "attention-bench", "Time block-sparse attention libraries in one run and with one mask.", EPILOG
    )
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=PRESETS,
        metavar="NAME",
        help=f"lists of cases: {', '.join(PRESETS)} (default: kernels on a GPU, cpu elsewhere); on a CPU one of "
        f"{', '.join(FOR_CPU)}, unless --seqlen is given",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        metavar="PEER",
        help=f"one or more of {', '.join(PEERS)} (default: ours, flex and, if installed, fa4; on a CPU ours, flex and sdpa)",
    )
    options.add_device(parser)
    options.add_threads(parser)
    options.add_case(
        parser,
        "this and the following options replace the preset with its first case, changed accordingly",
        PATTERNS,
    )
    options.add_window(parser)
    parser.add_argument("--forward-only", action="store_true", help="measure no backward and no memory")
    parser.add_argument(
        "--repeat-ms", type=options.milliseconds, default=60.0, help="time spent on each figure (default 60)"
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=1,
        help="rounds over all cases, of which the medians are taken, because a GPU slows down as it gets warm; every other "
        "round takes the peers in reverse order (default 1)",
    )
    options.add_budget(parser)
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def chosen_cases(given: argparse.Namespace, device: str) -> list[Case]:
    """The cases of the presets; if case options are given, only the first case with these options. `Unusable` for a preset of
    a GPU on a CPU, where already its masks take minutes."""
    names = given.preset or ["kernels" if device == "cuda" else "cpu"]
    of_gpu = [name for name in names if name not in FOR_CPU]
    if device == "cpu" and of_gpu and not hasattr(given, "seqlen"):
        raise options.Unusable(
            f"--preset {' '.join(of_gpu)} has sizes for a GPU; on a CPU choose from {', '.join(FOR_CPU)}, or give --seqlen"
        )
    cases = list(dict.fromkeys(case for name in names for case in PRESETS[name]))
    return [options.case_of(given, cases[0])] if options.has_case(given) else cases


def chosen_peers(given: argparse.Namespace, cases: list[Case], device: str) -> list[str]:
    """The requested peers, or the default ones without those that support none of the cases."""
    return list(dict.fromkeys(given.peers)) if given.peers else serving(DEFAULT_PEERS[device], cases, device)


def measured(
    case: Case, names: list[str], device: str, repeat_ms: float, with_backward: bool, budget: Budget
) -> Iterator[Row]:
    """The rows of a case, as they are measured; a peer that does not fit the budget has none."""
    try:
        layout, layout_ms = measure.build(case, device)
    except Exception as error:  # no peer can run a case whose layout cannot be built
        yield from (Row(name, case, PEERS[name].dense, refused=measure.one_line(error)) for name in names)
        return
    peers = [PEERS[name] for name in names]
    if device == "cpu":
        yield from measure.measure_in_turn(peers, case, layout, layout_ms, repeat_ms, with_backward)
        return
    expected: Expected | None = None
    for peer in peers:
        if not budget.fits((case, peer.name)):
            continue
        with budget.spent_on((case, peer.name)):
            row, expected = measure.measure(
                peer, case, layout, layout_ms, device, expected, repeat_ms, with_backward
            )
            measure.free(device)
        yield row


def left_out(found: dict[tuple[Case, str], list[Row]], cases: list[Case], names: list[str]) -> list[str]:
    """The cases that the budget left out, or some of whose peers it did."""
    lines = []
    for case in cases:
        missing = [name for name in names if (case, name) not in found]
        if missing:
            lines.append(case.label + ("" if missing == names else f": {', '.join(missing)}"))
    return lines


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a peer has no figures; 130 if interrupted, with the figures so far saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    found: dict[tuple[Case, str], list[Row]] = {}
    command = options.command_line(parser.prog, arguments, given.json)
    cases = chosen_cases(given, device)
    names = chosen_peers(given, cases, device)

    where = environment(device, command)
    budget = Budget(given.budget)

    def medians() -> list[Row]:
        return [measure.median_row(tries) for tries in found.values()]

    def save(**more: Any) -> None:
        if given.json and found:
            report.write_json(given.json, medians(), {**where, **more})

    was_interrupted = False
    missing: list[str] = []
    try:
        for i_round, case in itertools.product(range(given.rounds), cases):
            if not budget.fits(case):
                continue
            in_order = names[::-1] if i_round % 2 else names
            print(f"{case.label} ...", flush=True)  # building its mask takes a while
            with budget.spent_on(case):
                for row in measured(case, in_order, device, given.repeat_ms, not given.forward_only, budget):
                    found.setdefault((case, row.peer), []).append(row)
                    print(report.line(row), flush=True)
            save()
        missing = left_out(found, cases, names)
        if missing:
            save(left_out=missing)
    except KeyboardInterrupt as stopped:
        was_interrupted = True
        for row in getattr(stopped, "rows", []):
            found.setdefault((row.case, row.peer), []).append(row)
        save()
    rows = medians()
    if rows:
        Console(width=None if sys.stdout.isatty() else 180).print(report.table(rows))
    if was_interrupted:
        return outcome.interrupted(parser.prog, rows, given.json)
    if missing:
        print(f"{budget.left_out()}: {'; '.join(missing)}", flush=True)
    return outcome.finished(parser.prog, rows)
