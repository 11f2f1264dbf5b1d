"""The environment variables of the library: what each may be, and how it is read."""

from __future__ import annotations

import os
from typing import NamedTuple

PREFIX = "DILATED_ATTENTION_"


class Setting(NamedTuple):
    """A variable. Where it is not set, or empty, it has its default."""

    name: str
    default: str
    choices: tuple[str, ...]
    numbers: str | None = None  # what a number means, where it may be one

    def read(self) -> str:
        """Its value.

        Raises:
            ValueError: it is none of those that it may be.
        """
        value = os.environ.get(self.name) or self.default
        if value in self.choices or (self.numbers is not None and value.isdecimal()):
            return value
        allowed = " or ".join(self.choices)
        if self.numbers is not None:
            allowed += f" or {self.numbers}"
        raise ValueError(f"{self.name} must be {allowed}, got {value!r}")


# Processes that compile kernels which will be wanted soon.
COMPILE_WORKERS = Setting(f"{PREFIX}COMPILE_WORKERS", "auto", ("auto",), "a number of processes (0 for none)")
# Whether rows may be split, where tiles are few.
SPLIT_ROWS = Setting(f"{PREFIX}SPLIT_ROWS", "0", ("0", "1"))
# Whether a backward with the same bits every time adds to sums of dq, in fixed point or in turns, where that fits and pays.
BACKWARD_SUMS = Setting(f"{PREFIX}BACKWARD_SUMS", "auto", ("auto", "off"))
SETTINGS = (COMPILE_WORKERS, SPLIT_ROWS, BACKWARD_SUMS)
