"""The parser and the kinds of values that the commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from ..config import BLOCK_SIZES


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive_int(text: str) -> int:
    """An int of at least 1; underscores and commas between the digits are fine."""
    try:
        value = int(text.replace(",", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
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
