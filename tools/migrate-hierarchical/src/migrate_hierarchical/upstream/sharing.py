"""Which of upstream's class names the files of a project take from one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ..removed_api import PACKAGE
from .old_api import RENAMED

NAMES = "|".join(sorted(RENAMED)).encode()
NAME = re.compile(rb"\b(" + NAMES + rb")\b")
MEMBER = re.compile(rb"\w\.(" + NAMES + rb")\b")
IMPORT = re.compile(rb"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)", re.MULTILINE)
OURS = re.compile(rf"(?:src\.)?{PACKAGE}(?:\.|$)".encode())


def shared_names(paths: Iterable[str], read: Callable[[str], bytes]) -> frozenset[str]:
    """The names that a file imports from a module of the project, or reads there: they have to stay importable."""
    found: set[bytes] = set()
    for path in paths:
        data = read(path)
        if NAME.search(data) is None:
            continue
        if PACKAGE.encode() not in data:
            found.update(MEMBER.findall(data))
        for module, imported in IMPORT.findall(data):
            if not OURS.match(module):
                found.update(NAME.findall(imported))
    return frozenset(name.decode() for name in found)
