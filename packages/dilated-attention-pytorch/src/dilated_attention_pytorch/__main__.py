"""`python -m dilated_attention_pytorch`: demo, doctor, plot, warm."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from . import __version__
from .cli import doctor, plot, warm
from .cli.arguments import OneLineParser
from .cli.errors import CommandError
from .demo import command as demo

PROG = "python -m dilated_attention_pytorch"
COMMANDS = {
    "demo": (
        demo,
        "Compare four kinds of attention in a small language model that retrieves a passkey from real text.",
    ),
    "doctor": (
        doctor,
        "Print versions, devices and, for every backend, whether it serves a typical call or why not.",
    ),
    "plot": (plot, "Draw a pattern and print its statistics."),
    "warm": (warm, "Compile kernels ahead of time, so that no process has to wait for them."),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser with one subparser per command."""
    parser = OneLineParser(PROG, description="Block-sparse attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"dilated-attention-pytorch {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, (command, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: success; 1: a kernel does not compile (`warm`); 2: bad input, with one line on standard error; 130: interrupted;
    141: the reader of a pipe closed it.
    """
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        return fail(args.command, str(error))
    except KeyboardInterrupt:
        return fail(args.command, "interrupted", 130)
    except BrokenPipeError:  # e.g. `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Python's final flush quiet
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(args.command, "out of memory; use smaller sizes")
    return status


def fail(command: str, message: str, status: int = 2) -> int:
    """Print an error in one line and return the exit status."""
    print(f"{PROG} {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, CUDA or the CPU allocator ran out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
