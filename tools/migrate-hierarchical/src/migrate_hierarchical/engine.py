"""One file from bytes to a result; no file stops another."""

from __future__ import annotations

import os
from collections.abc import Callable

from .constants import takes_constant
from .discovery import NOTEBOOK, PLAIN, PROSE, PYTHON
from .documents.result import Result
from .names import GONE, NEEDLE, PACKAGE, REMOVED, TODO
from .settings import Settings

SKIP_FILE = b"migrate-hierarchical: skip-file"
LARGEST_TEXT = 10 * 2**20  # bytes of a data file that is still searched


def may_hold_use(path: str, data: bytes) -> bool:
    """A fast look: the needle, and a way to reach the package."""
    if SKIP_FILE in data:
        return False
    if NEEDLE not in data:
        if path.endswith(PLAIN) or PACKAGE.encode() not in data:
            return False
        return GONE.search(data) is not None or (path.endswith(PYTHON) and takes_constant(path, data))
    if path.endswith(PLAIN):
        return len(data) <= LARGEST_TEXT
    if PACKAGE.encode() in data or TODO.encode() in data:
        return True
    return PACKAGE in path.replace(os.sep, "/").split("/")


def names_package(path: str, data: bytes) -> bool:
    """Whether a file is code that names the package."""
    return path.endswith((*PYTHON, *NOTEBOOK)) and PACKAGE.encode() in data


def may_hand_on(path: str, data: bytes) -> bool:
    """Whether a file without a use may give names of the package to another one, or lack some that were taken."""
    if path.endswith(PLAIN):
        return False
    return PACKAGE.encode() in data or (NEEDLE in data and any(name.encode() in data for name in REMOVED))


def migrate_bytes(path: str, data: bytes, settings: Settings) -> Result:
    """The result for the content of one file; never raises for what the file holds."""
    result = Result(path)
    if settings.facts is None and not may_hold_use(path, data):
        return result
    if path.endswith(PLAIN):
        from .documents.plain import find_mentions

        result.left = find_mentions(data, settings.uses_package)
        return result
    # imported late: libcst takes longer to import than a tree without a use takes to search
    from .documents.docstrings import migrate_python
    from .documents.python import Migrated, Unreadable

    migrate: Callable[[bytes, str, Settings], tuple[bytes, Migrated]] = migrate_python
    if path.endswith(NOTEBOOK):
        from .documents.notebook import migrate_notebook as migrate
    elif path.endswith(PROSE):
        from .documents.prose import migrate_page as migrate
    try:
        new, report = migrate(data, os.path.abspath(path), settings)
    except Unreadable as error:
        result.error = str(error)
        return result
    except Exception as error:  # one file never stops the rest, whatever this tool does wrong
        result.error = (
            f"left alone after an error of this tool, please report it: {type(error).__name__}: {error!s:.80}"
        )
        return result
    result.rewritten, result.left = report.rewritten, report.left
    if new != data:
        result.new, result.old = new, data
        note_new_lines(result, new)
    return result


def note_new_lines(result: Result, new: bytes) -> None:
    """Where each entry stands in the new file: its line, its mark, or the beginning of what replaced it."""
    import difflib

    lines = new.splitlines()
    blocks = difflib.SequenceMatcher(None, result.old.splitlines(), lines, autojunk=False).get_opcodes()
    taken: set[int] = set()
    for entry in (*result.rewritten, *result.left):
        for kind, begin, end, new_begin, new_end in blocks:
            if kind == "insert" or not begin < entry.line <= end:
                continue
            if kind == "equal":
                entry.new_line = new_begin + entry.line - begin
                break
            mark = f"{TODO}{entry.rule} ".encode()
            marks = [i for i in range(new_begin, new_end) if mark in lines[i] and i not in taken]
            taken.update(marks[:1])
            entry.new_line = marks[0] + 1 if marks else new_begin + 1


def read_file(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
