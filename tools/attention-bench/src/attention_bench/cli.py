"""The command line: attention-bench [run] and the commands of COMMANDS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from dilated_attention_pytorch.cli.arguments import did_you_mean

from . import (
    breakeven,
    calls,
    decode,
    determinism,
    host,
    large,
    markdown,
    models,
    plan,
    plots,
    report,
    run,
    scaling,
    selection,
    short,
    tune,
    video,
)
from .options import Unusable, make_parser
from .outcome import INTERRUPTED

Read = TypeVar("Read")


def read(file: str, reader: Callable[[str], Read]) -> Read:
    """Apply `reader` to a file; raise Unusable if that fails."""
    try:
        return reader(file)
    except OSError as error:
        raise Unusable(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, LookupError) else error
        raise Unusable(f"cannot read {file}: {what}") from error


def file_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = make_parser(f"attention-bench {command}", description)
    parser.add_argument("file", help="JSON written by attention-bench --json")
    return parser


def build_plot_parser() -> argparse.ArgumentParser:
    parser = file_parser("plot", "Draw the figures of a run as bar charts.")
    parser.add_argument(
        "--output", default="benchmark-plots", help="folder for the images; its parent folder must exist"
    )
    return parser


def build_markdown_parser() -> argparse.ArgumentParser:
    return file_parser("markdown", "Print figures as a Markdown table, whichever command wrote them.")


def build_breakeven_parser() -> argparse.ArgumentParser:
    parser = file_parser("breakeven", breakeven.__doc__ or "")
    parser.add_argument("--peer", default="ours", help="default: ours")
    parser.add_argument("--dense", default="cudnn", help="the dense peer (default: cudnn)")
    return parser


def draw_plots(arguments: list[str]) -> int:
    given = build_plot_parser().parse_args(arguments)
    rows, where = read(given.file, report.read_json)
    try:
        written = plots.plot(rows, where, given.output)
    except OSError as error:
        raise Unusable(f"cannot write to {given.output}: {error.strerror or error}") from error
    if not written:
        raise Unusable(f"{given.file} has no times to draw: every case of every peer was refused")
    for path in written:
        print(path)
    return 0


def print_markdown(arguments: list[str]) -> int:
    given = build_markdown_parser().parse_args(arguments)
    print(read(given.file, markdown.table), end="")
    return 0


def find_breakeven(arguments: list[str]) -> int:
    given = build_breakeven_parser().parse_args(arguments)
    rows, _ = read(given.file, report.read_json)
    peers = list(dict.fromkeys(row.peer for row in rows))
    for flag, name in (("--peer", given.peer), ("--dense", given.dense)):
        if name not in peers:
            near = did_you_mean(name, peers)
            raise Unusable(
                f"{given.file} has no peer {name!r}{near} (its peers: {', '.join(peers)}); give {flag}"
            )
    lines = breakeven.lines(rows, given.peer, given.dense)
    if not lines:
        raise Unusable(
            f"{given.file} has no case at several densities with the peers {given.peer}, {given.dense}"
        )
    print("\n".join(lines))
    return 0


Command = tuple[Callable[[], argparse.ArgumentParser], Callable[[list[str]], int]]
COMMANDS: dict[str, Command] = {
    "run": (run.build_parser, run.main),
    "plot": (build_plot_parser, draw_plots),
    "markdown": (build_markdown_parser, print_markdown),
    "breakeven": (build_breakeven_parser, find_breakeven),
    "long": (large.build_parser, large.main),
    "calls": (calls.build_parser, calls.main),
    "short": (short.build_parser, short.main),
    "decode": (decode.build_parser, decode.main),
    "selection": (selection.build_parser, selection.main),
    "video": (video.build_parser, video.main),
    "scaling": (scaling.build_parser, scaling.main),
    "models": (models.build_parser, models.main),
    "plan": (plan.build_parser, plan.main),
    "host": (host.build_parser, host.main),
    "determinism": (determinism.build_parser, determinism.main),
    "tune": (tune.build_parser, tune.main),
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its program name."""
    parsers = [build() for build, _ in COMMANDS.values()]
    return {parser.prog: parser for parser in parsers}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 if a check fails or a peer has no figures; 2 for bad usage; 130 if interrupted."""
    given: list[Any] = sys.argv[1:] if arguments is None else arguments
    is_named = bool(given) and not given[0].startswith("-")
    name, others = (given[0], given[1:]) if is_named else ("run", given)
    if name not in COMMANDS:
        commands = ", ".join(COMMANDS)
        return fail(
            f"attention-bench: unknown command {name!r}{did_you_mean(name, COMMANDS)} (choose from {commands})"
        )
    build, command = COMMANDS[name]
    try:
        status = command(others)
        sys.stdout.flush()
    except BrokenPipeError:  # e.g. `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Python's final flush quiet
        return 141
    except (Unusable, OSError) as error:
        return fail(f"{build().prog}: {error}")
    except KeyboardInterrupt:
        return fail(f"{build().prog}: interrupted", INTERRUPTED)
    return status


def fail(message: str, status: int = 2) -> int:
    """Print an error in one line and return the exit status."""
    print(" ".join(message.split()), file=sys.stderr)
    return status
