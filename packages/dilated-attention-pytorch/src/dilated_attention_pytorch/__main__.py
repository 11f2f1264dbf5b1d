"""`python -m dilated_attention_pytorch`: demo, doctor, plot."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from . import __version__
from .cli import doctor, plot
from .cli.arguments import OneLineParser
from .cli.errors import CommandError
from .demo import command as demo

PROG = "python -m dilated_attention_pytorch"
COMMANDS = {
    "demo": (
        demo,
        "Compare four attentions in a small language model that looks for a passkey in real text.",
    ),
    "doctor": (
        doctor,
        "Print versions, devices and, per backend, whether it serves a typical call or why not.",
    ),
    "plot": (plot, "Draw a pattern and print its figures."),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = OneLineParser(PROG, description="Block-sparse attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"dilated-attention-pytorch {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, (command, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 with a line on the standard error for bad input."""
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        return fail(args.command, str(error))
    except KeyboardInterrupt:
        return fail(args.command, "interrupted", 130)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush is quiet
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(args.command, "out of memory; ask for less")
    return status


def fail(command: str, message: str, status: int = 2) -> int:
    """Say in one line what is wrong."""
    print(f"{PROG} {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's or the CPU allocator's way to say so."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
