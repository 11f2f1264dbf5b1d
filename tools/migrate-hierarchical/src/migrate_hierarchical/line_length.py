"""Reads the line length of a project from its ruff or black settings."""

from __future__ import annotations

import os
import sys
from typing import Any

NAMES = (".ruff.toml", "ruff.toml", "pyproject.toml")


class LineLengths:
    """The line length for the files of every folder; 0 if no settings have one."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, path: str) -> int:
        """The line length of the nearest settings at or above the folder of a file."""
        folder = os.path.dirname(os.path.abspath(path))
        passed = []
        while folder not in self.known:
            passed.append(folder)
            own = length_in(folder)
            parent = os.path.dirname(folder)
            if own or parent == folder:
                self.known[folder] = own
                break
            folder = parent
        for each in passed:
            self.known[each] = self.known[folder]
        return self.known[folder]


def length_in(folder: str) -> int:
    for name in NAMES:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
        except OSError:
            continue
        length = length_of(data, name == "pyproject.toml") if b"line-length" in data else 0
        if length:
            return length
    return 0


def length_of(data: bytes, is_pyproject: bool) -> int:
    """The line length in the bytes of a settings file; 0 if it has none or cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table: dict[str, Any] = tomllib.loads(data.decode())
        tool = table.get("tool", {}) if is_pyproject else {"ruff": table}
        lengths = [tool.get(name, {}).get("line-length") for name in ("ruff", "black")]
    except (ValueError, AttributeError):
        return 0
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)
