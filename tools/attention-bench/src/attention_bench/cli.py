"""The command line: attention-bench [run] | plot | markdown | breakeven | long | host | determinism | tune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from . import breakeven, determinism, documents, host, long, plots, report, run, tune
from .options import Unusable

Read = TypeVar("Read")


def read(file: str, reader: Callable[[str], Read]) -> Read:
    """What `reader` makes of a file."""
    try:
        return reader(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"cannot read {file}: {error}") from error


def file_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"attention-bench {command}", description=description)
    parser.add_argument("file", help="JSON written by attention-bench --json")
    return parser


def build_plot_parser() -> argparse.ArgumentParser:
    parser = file_parser("plot", "Draw the figures of a run.")
    parser.add_argument("--output", default="benchmark-plots", help="folder for the pictures")
    return parser


def build_markdown_parser() -> argparse.ArgumentParser:
    return file_parser("markdown", "Print the figures of run, long or host as a table.")


def build_breakeven_parser() -> argparse.ArgumentParser:
    parser = file_parser("breakeven", breakeven.__doc__ or "")
    parser.add_argument("--peer", default="ours", help="default: ours")
    parser.add_argument("--dense", default="cudnn", help="the dense peer (default: cudnn)")
    return parser


def plot(arguments: list[str]) -> int:
    given = build_plot_parser().parse_args(arguments)
    rows, where = read(given.file, report.read_json)
    for path in plots.plot(rows, where, given.output):
        print(path)
    return 0


def markdown(arguments: list[str]) -> int:
    given = build_markdown_parser().parse_args(arguments)
    print(read(given.file, documents.markdown), end="")
    return 0


def find_breakeven(arguments: list[str]) -> int:
    given = build_breakeven_parser().parse_args(arguments)
    rows, _ = read(given.file, report.read_json)
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
    "plot": (build_plot_parser, plot),
    "markdown": (build_markdown_parser, markdown),
    "breakeven": (build_breakeven_parser, find_breakeven),
    "long": (long.build_parser, long.main),
    "host": (host.build_parser, host.main),
    "determinism": (determinism.build_parser, determinism.main),
    "tune": (tune.build_parser, tune.main),
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by how it is called."""
    made = [build() for build, _ in COMMANDS.values()]
    return {parser.prog: parser for parser in made}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 when a check fails; 2 on bad usage."""
    given: list[Any] = sys.argv[1:] if arguments is None else arguments
    name, others = (given[0], given[1:]) if given and given[0] in COMMANDS else ("run", given)
    build, command = COMMANDS[name]
    try:
        return command(others)
    except Unusable as error:
        print(f"{build().prog}: {error}", file=sys.stderr)
        return 2
