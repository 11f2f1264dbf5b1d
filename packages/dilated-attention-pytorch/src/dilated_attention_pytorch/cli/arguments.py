"""The argument parser of the commands, and the types of their arguments."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..config import BLOCK_SIZES

MAX_INT = 2**63 - 1  # of an int64 tensor


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """End of an error message about an unknown word: the closest name, or nothing if none is close."""
    cutoff = 0.6 if len(word) > 3 else 0.7  # two of three letters are not enough: gpu is not cpu
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class OneLineParser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage, and suggests the closest option or choice."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Reject unknown words here: only a subcommand's own parser knows its options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = did_you_mean(flag, self._option_string_actions) if flag.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As in argparse, with a suggestion (which argparse adds in Python 3.14)."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {value!r}{did_you_mean(str(value), choices)} (choose from {', '.join(choices)})",
            )


def positive_int(text: str) -> int:
    """An int from 1 to 2**63 - 1, with or without underscores and commas between the digits."""
    try:
        value = int(text.replace(",", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    if value > MAX_INT:
        raise argparse.ArgumentTypeError(f"must be at most 2**63 - 1, got {text!r}")
    return value


MAX_THREADS = 1024


def thread_count(text: str) -> int:
    """A number of threads, an int from 1 to 1,024."""
    value = positive_int(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_THREADS:,}, got {text!r}")
    return value


def natural_int(text: str) -> int:
    """An int from 0 to 2**63 - 1."""
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got {text!r}")
    return value


def kept_ratio(text: str) -> float:
    """The fraction of blocks kept, 0 < ratio <= 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"must be the fraction of blocks kept, 0 < ratio <= 1, got {text!r}; for 99 % sparse use 0.01"
        )
    return value


def int_list(text: str) -> list[int]:
    """Positive ints separated by commas."""
    try:
        return [positive_int(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers of at least 1 separated by commas, such as 1,2,4,8, got {text!r}"
        ) from None


def block_size(text: str) -> int:
    """One of the supported block sizes."""
    if text not in map(str, BLOCK_SIZES):
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(map(str, BLOCK_SIZES))}, got {text!r}")
    return int(text)


def path(text: str) -> Path:
    """A path; not empty and without null characters."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)
