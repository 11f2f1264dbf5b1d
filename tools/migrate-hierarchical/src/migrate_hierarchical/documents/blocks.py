"""Several pieces of Python that share their names: the cells of a notebook, the examples of a page.

They are joined into one source with a marker line between them, migrated together, and taken apart again. A piece
that is no valid Python is left out.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import libcst as cst

from ..names import NEEDLE, PIECE, REMOVED, REMOVED_MODULE
from ..settings import Settings
from .python import Migrated, Unreadable, migrate_source
from .result import Entry

NAMES = re.compile(rf"\b({'|'.join(sorted({*REMOVED, REMOVED_MODULE}))})\b")
MAGIC = "pass  #@migrate-hierarchical-line "
MAGIC_LINE = re.compile(
    r"^([ \t]*)(?=\S)((?:[%!?]|[\w.\[\], ]+=\s*[%!]).*|[^#'\"\n]*\?{1,2})[ \t]*$", re.MULTILINE
)


class Blocks:
    """Pieces by index: their text, the number of each of their lines in the file, and the block they belong to."""

    def __init__(
        self,
        texts: list[str],
        lines: Sequence[Sequence[int]],
        groups: list[int],
        settings: Settings,
        path: str,
    ) -> None:
        self.texts, self.lines, self.groups = texts, lines, groups
        self.settings, self.path = settings, path

    def migrate(self) -> tuple[list[str], Migrated]:
        """New pieces in the same order, and the report with line numbers of the file."""
        masked, magics = [], []
        for text in self.texts:
            body, hidden = mask(text)
            masked.append(body)
            magics.append(hidden)
        usable = [i for i, text in enumerate(masked) if text.strip() and is_python(text)]
        known = set(usable)
        unreadable = [
            i
            for i, text in enumerate(masked)
            if i not in known and NEEDLE in text.encode("utf-8", "surrogateescape") and text.strip()
        ]
        joined, starts, line = "", [], 1
        newline = "\r\n" if any("\r\n" in text for text in self.texts) else "\n"
        for i in usable:
            text = masked[i] if masked[i].endswith("\n") else masked[i] + newline
            joined += f"{PIECE} {i} {self.groups[i]}{newline}{text}"
            starts.append((line + 1, i))
            line += text.count("\n") + 1
        report = Migrated()
        result = list(self.texts)
        if usable:
            data = joined.encode("utf-8", "surrogateescape")
            new, report = migrate_source(data, self.path, self.settings)
            pieces = re.split(
                rf"^{PIECE} (\d+) \d+\r?\n", new.decode("utf-8", "surrogateescape"), flags=re.MULTILINE
            )[1:]
            for index, piece in zip(pieces[::2], pieces[1::2]):
                i = int(index)
                if not masked[i].endswith("\n"):
                    piece = piece.removesuffix(newline)
                result[i] = unmask(piece, magics[i])
            if len(pieces) // 2 != len(usable):
                raise Unreadable("a piece of code was lost")  # never seen; better than writing it
        for entry in (*report.rewritten, *report.left):
            start, i = starts[max(bisect_right(starts, (entry.line, len(masked))) - 1, 0)]
            entry.line = self.line(i, entry.line - start)
        for i in unreadable:
            report.left.append(Entry(self.line(i, 0), "HIER190", "a piece of code that is not valid Python"))
        for i, text in enumerate(self.texts):
            report.left += self.masked_uses(i, text, magics[i] if masked[i] else [text])
        return result, report

    def line(self, index: int, offset: int) -> int:
        lines = self.lines[index]
        return lines[min(max(offset, 0), len(lines) - 1)]

    def masked_uses(self, index: int, text: str, hidden: list[str]) -> Iterator[Entry]:
        """Removed names in magics and shell lines, which are never changed."""
        for part in hidden:
            match = NAMES.search(part)
            if match is not None:
                above = text.count("\n", 0, text.find(part) + match.start())
                yield Entry(self.line(index, above), "HIER103", f"{match.group()} in a magic or a shell line")


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
        return True
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    try:
        cst.parse_module(text)  # newer syntax than that of the running Python, await at the top
        return True
    except (cst.ParserSyntaxError, RecursionError):
        return False


def mask(text: str) -> tuple[str, list[str]]:
    """IPython's magics and shell lines as `pass` lines; a cell magic hides its cell."""
    stripped = text.lstrip()
    if stripped.startswith("%%") and not re.match(r"%%(time|timeit|capture|prun|memit)\b", stripped):
        return "", []
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group(2) + text[match.end(2) : match.end()])
        return f"{match.group(1)}{MAGIC}{len(hidden) - 1}"

    masked = MAGIC_LINE.sub(hide, text)
    return (masked, hidden) if hidden and not is_python(text) else (text, [])


def unmask(text: str, hidden: list[str]) -> str:
    return re.sub(re.escape(MAGIC) + r"(\d+)", lambda match: hidden[int(match.group(1))], text)
