"""The parser and the kinds of values that the commands take."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..config import BLOCK_SIZES

MAX_INT = 2**63 - 1  # that a tensor holds


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest name, or nothing if none is near."""
    cutoff = 0.6 if len(word) > 3 else 0.7  # two letters of three are not near: gpu is no cpu
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the word that was meant if one is near; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses unknown words itself: of a subcommand only its own parser knows what is near."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = did_you_mean(flag, self._option_string_actions) if flag.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with a suggestion (argparse has one from Python 3.14 on)."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {value!r}{did_you_mean(str(value), choices)} (choose from {', '.join(choices)})",
            )


def positive_int(text: str) -> int:
    """An int from 1 to 2**63 - 1; underscores and commas between the digits are fine."""
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
    """A number of threads: an int from 1 to 1,024."""
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
    """A fraction of blocks kept: 0 < ratio <= 1."""
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
    """Positive ints, separated by commas."""
    try:
        return [positive_int(part.strip()) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be whole numbers of at least 1 separated by commas, such as 1,2,4,8, got {text!r}"
        ) from None


def block_size(text: str) -> int:
    """One of the block sizes that a pattern may have."""
    if text not in map(str, BLOCK_SIZES):
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(map(str, BLOCK_SIZES))}, got {text!r}")
    return int(text)


def path(text: str) -> Path:
    """A path that may be opened."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)
