"""The command line: attention-bench [run] | plot | markdown | tune."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from . import measure, plots, report, tune
from .cases import DTYPES, PRESETS, Case
from .peers import PEERS

DEFAULT_PEERS = {"cuda": ["ours", "flex", "fa4"], "cpu": ["ours", "flex", "sdpa"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attention-bench",
        description="Time block-sparse attention libraries in one run and on one mask.",
        epilog="Other commands: `attention-bench plot FILE.json` draws the figures of a run, "
        "`attention-bench markdown FILE.json` prints them as a table, "
        "`attention-bench tune` finds the fastest tiles of the Triton kernels on this GPU.",
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="a list of cases (default: kernels on a GPU, cpu elsewhere)"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, help="default: ours, flex and fa4 or, on a CPU, sdpa"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU, if there is one")
    parser.add_argument(
        "--seqlen", type=int, help="tokens; this and the following make one case of their own"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--block", type=int, help="tokens per block side")
    parser.add_argument("--density", type=float, help="share of blocks kept")
    parser.add_argument("--pattern", choices=("dilated_sparse", "local_window", "global_local"))
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--causal", action="store_true", default=None)
    parser.add_argument("--forward-only", action="store_true", help="no backward, no memory")
    parser.add_argument(
        "--repeat-ms", type=float, default=60.0, help="time spent on each figure (default 60)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures with device, versions and date")
    return parser


def build_plot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attention-bench plot", description="Draw the figures of a run.")
    parser.add_argument("file", help="JSON written by attention-bench --json")
    parser.add_argument("--output", default="benchmark-plots", help="folder for the pictures")
    return parser


def chosen_cases(options: argparse.Namespace, device: str) -> list[Case]:
    """The preset's cases; with a shape option one case, the preset's first one with the options given."""
    preset = PRESETS[options.preset or ("kernels" if device == "cuda" else "cpu")]
    fields = (
        "seqlen",
        "batch",
        "heads",
        "kv_heads",
        "head_dim",
        "block",
        "density",
        "pattern",
        "dtype",
        "causal",
    )
    given = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    return [dataclasses.replace(preset[0], **given)] if given else preset


def run(arguments: list[str]) -> int:
    options = build_parser().parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("attention-bench: --device cuda, but torch sees no GPU; use --device cpu", file=sys.stderr)
        return 2
    try:
        cases = chosen_cases(options, device)
        for case in cases:
            case.config()
    except ValueError as error:
        print(f"attention-bench: {error}", file=sys.stderr)
        return 2
    rows = []
    for case in cases:
        layout, layout_ms = measure.build(case, device)
        expected = None
        for name in options.peers or DEFAULT_PEERS[device]:
            row, expected = measure.measure(
                PEERS[name],
                case,
                layout,
                layout_ms,
                device,
                expected,
                options.repeat_ms,
                not options.forward_only,
            )
            measure.free(device)
            rows.append(row)
            print(report.line(row), flush=True)
            if options.json:
                command = [Path(each).name if each == options.json else each for each in arguments]
                where = report.environment(device, shlex.join(["attention-bench", *command]))
                report.write_json(options.json, rows, where)
    Console(width=None if sys.stdout.isatty() else 180).print(report.table(rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 2 on bad usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tune"]:
        return tune.main(arguments[1:])
    if arguments[:1] == ["markdown"]:
        parser = argparse.ArgumentParser(
            prog="attention-bench markdown", description="Print a run as a table."
        )
        parser.add_argument("file", help="JSON written by attention-bench --json")
        file = parser.parse_args(arguments[1:]).file
        try:
            print(report.markdown(*report.read_json(file)), end="")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"attention-bench markdown: cannot read {file}: {error}", file=sys.stderr)
            return 2
        return 0
    if arguments[:1] == ["plot"]:
        options = build_plot_parser().parse_args(arguments[1:])
        try:
            rows, where = report.read_json(options.file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"attention-bench plot: cannot read {options.file}: {error}", file=sys.stderr)
            return 2
        for path in plots.plot(rows, where, options.output):
            print(path)
        return 0
    return run(arguments[1:] if arguments[:1] == ["run"] else arguments)
