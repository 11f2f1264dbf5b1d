"""Migrates one file from bytes to a result; an error in one file never stops the others."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable

from .constants import takes_constant
from .diagnostic import Diagnostic
from .discovery import NOTEBOOK, PLAIN, PROSE, PYTHON
from .documents.result import Result, SourceReport
from .limits import DATA_BYTES
from .lines import opcodes
from .removed_api import GONE, NEEDLE, PACKAGE, REMOVED_NAMES, SETTING, SKIP_FILE, TODO
from .settings import HIERARCHICAL_GROUP, UPSTREAM, Settings
from .silence import Silence


def may_hold_use(path: str, data: bytes, groups: tuple[str, ...] = (HIERARCHICAL_GROUP,)) -> bool:
    """Fast check of the bytes: whether one of the groups may find something in them."""
    if SKIP_FILE in data:
        return False
    if UPSTREAM in groups and PACKAGE.encode() in data and not path.endswith(PLAIN):
        return True
    return HIERARCHICAL_GROUP in groups and may_hold_removed_name(path, data)


def may_hold_removed_name(path: str, data: bytes) -> bool:
    """Whether the bytes contain a removed name and a way to reach the package."""
    if NEEDLE not in data:
        if path.endswith(PLAIN) or PACKAGE.encode() not in data:
            return False
        return GONE.search(data) is not None or (path.endswith(PYTHON) and takes_constant(path, data))
    if path.endswith(PLAIN):
        return not is_too_large(path, data)
    if PACKAGE.encode() in data or TODO.encode() in data:
        return True
    if path.endswith(PYTHON) and SETTING.search(data):
        return True
    return PACKAGE in path.replace(os.sep, "/").split("/")


def is_too_large(path: str, data: bytes) -> bool:
    """Whether a data file with a removed name, such as a dataset, is too large to be searched."""
    return len(data) > DATA_BYTES and path.endswith(PLAIN) and NEEDLE in data and SKIP_FILE not in data


def names_package(path: str, data: bytes) -> bool:
    """Whether a file is code and mentions the package."""
    return path.endswith((*PYTHON, *NOTEBOOK)) and PACKAGE.encode() in data


def may_hand_on(path: str, data: bytes) -> bool:
    """Whether a file without a use may pass names of the package to another file, or lack some that others import."""
    if path.endswith(PLAIN):
        return False
    return PACKAGE.encode() in data or (
        NEEDLE in data and any(name.encode() in data for name in REMOVED_NAMES)
    )


def migrate_bytes(path: str, data: bytes, settings: Settings) -> Result:
    """The result for the content of one file; no content makes it raise."""
    result = Result(path)
    for number, group in enumerate(settings.groups):
        now = data if result.new is None else result.new
        later = migrate_with(path, now, settings.of_group(group) if settings.select else settings)
        result = later if number == 0 or later.error else one_after_the_other(result, later)
        if result.error is not None:
            break
    return result


def one_after_the_other(first: Result, second: Result) -> Result:
    """The result of two runs on one file, the second on what the first has written."""
    if first.new is not None:
        back = moved_lines(first.new, first.old)
        for entry in (*second.rewritten, *second.left):
            if entry.new_line is None and second.new is None:
                entry.new_line = entry.line
            entry.line = back(entry.line)
        second.old = first.old
    if second.new is None:
        second.new, second.old = first.new, first.old
    else:
        forward = moved_lines(second.old if first.new is None else first.new, second.new)
        for entry in (*first.rewritten, *first.left):
            entry.new_line = forward(entry.line if entry.new_line is None else entry.new_line)
    for mine, theirs in ((second.rewritten, first.rewritten), (second.left, first.left)):
        mine += theirs
        mine.sort(key=lambda entry: entry.line)
    return second


def moved_lines(old: bytes, new: bytes) -> Callable[[int], int]:
    """A function that returns the new number of a line: of the same line, or of what replaced it."""
    blocks = [block for block in opcodes(old.splitlines(), new.splitlines()) if block[1] < block[2]]
    begins = [begin for _, begin, _, _, _ in blocks]

    def moved(line: int) -> int:
        place = bisect_right(begins, line - 1) - 1
        if place < 0:
            return line
        kind, begin, _, new_begin, _ = blocks[place]
        return new_begin + (line - begin if kind == "equal" else 1)

    return moved


def migrate_with(path: str, data: bytes, settings: Settings) -> Result:
    """The result of the rules of one group."""
    result = Result(path)
    if settings.group == UPSTREAM:
        taken = settings.facts is not None and (settings.facts.imported or settings.facts.upstream)
        if SKIP_FILE in data or not (taken or may_hold_use(path, data, (UPSTREAM,))):
            return result
    elif settings.facts is None and not may_hold_use(path, data):
        return result
    if path.endswith(PLAIN):
        from .documents.plain import find_mentions

        result.left = heard(find_mentions(data, settings.uses_package), path, data, settings)
        return result
    # imported late: libcst takes longer to import than a tree without a use takes to search
    from .documents.docstrings import migrate_python
    from .documents.python import Unreadable

    migrate: Callable[[bytes, str, Settings], tuple[bytes, SourceReport]] = migrate_python
    if path.endswith(NOTEBOOK):
        from .documents.notebook import migrate_notebook as migrate
    elif path.endswith(PROSE):
        from .documents.prose import migrate_page as migrate
    try:
        new, report = migrate(data, os.path.abspath(path), settings)
    except Unreadable as error:
        result.error = str(error)
        return result
    except Exception as error:  # a bug of this tool in one file must not stop the others
        result.error = (
            f"left alone after an error of this tool, please report it: {type(error).__name__}: {error!s:.80}"
        )
        return result
    result.rewritten = report.rewritten
    result.left = heard(report.left, path, data, settings)
    if new != data:
        result.new, result.old = new, data
        note_new_lines(result, new)
    return result


def migrate_script(path: str, data: bytes, settings: Settings) -> Result:
    """The result for a script without a suffix that was found in a folder: reported, not changed."""
    from .documents.plain import find_mentions

    left = find_mentions(data)
    for entry in left:
        entry.detail += ", a script without a suffix: name it on the command line to have it rewritten"
    return Result(path, left=heard(left, path, data, settings))


def heard(left: list[Diagnostic], path: str, data: bytes, settings: Settings) -> list[Diagnostic]:
    """The diagnostics that neither the settings nor a comment on the line silence."""
    silence = Silence(data, bare=not path.endswith(PROSE + PLAIN), is_python=False)
    return [
        entry for entry in left if settings.wants(entry.rule) and not silence.covers(entry.line, entry.rule)
    ]


def note_new_lines(result: Result, new: bytes) -> None:
    """Set the new line of every diagnostic that has none yet: that of the same line, or of what replaced it."""
    entries = [entry for entry in (*result.rewritten, *result.left) if entry.new_line is None]
    if not entries:
        return
    moved = moved_lines(result.old, new)
    for entry in entries:
        entry.new_line = moved(entry.line)


def read_file(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
