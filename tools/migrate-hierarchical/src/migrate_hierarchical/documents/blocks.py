"""Migrates pieces of Python that share one namespace: the cells of a notebook, the examples of a page.

They are joined into one source with a marker line between them, migrated together, and split again. Pieces that are
not valid Python are left out.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import libcst as cst

from ..diagnostic import Diagnostic
from ..removed_api import GONE_NAMES, MAGIC_LINE, NEEDLE, PACKAGE, PIECE
from ..settings import UPSTREAM, Settings
from .python import Unreadable, migrate_source
from .result import SourceReport

GONE_NAME = re.compile(rf"\b({'|'.join(sorted(GONE_NAMES))})\b")
MAGIC = f"pass  {MAGIC_LINE} "
MAGICS = re.compile(
    r"^([ \t]*)(?=\S)((?:[%!?]|[\w.\[\], ]+=\s*[%!]).*|[^#'\"\n]*\?{1,2})[ \t]*$", re.MULTILINE
)
# Magics of cells that do not see the names of the notebook.
ELSEWHERE = re.compile(
    r"%%(?:!|(?:bash|sh|script|cmd|sx|system|python[23]?|pypy|perl|ruby|html|HTML|svg|SVG|js|javascript|latex|markdown|"
    r"file|writefile)\b)"
)
WORD = re.compile(r"[^\W\d]\w*")


class Blocks:
    """Pieces by index: their texts, the file's line number of each of their lines, and the blocks they belong to."""

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
        # diagnostic, its piece, and its line in the new piece
        self.places: list[tuple[Diagnostic, int, int]] = []

    def migrate(self) -> tuple[list[str], SourceReport]:
        """The new pieces in the same order, and the report with the file's line numbers."""
        masked, magics = [], []
        for text in self.texts:
            body, hidden = mask(text)
            masked.append(body)
            magics.append(hidden)
        usable = [i for i, text in enumerate(masked) if text.strip() and is_python(text)]
        known = set(usable)
        unreadable = [
            i for i, text in enumerate(masked) if i not in known and self.holds_use(text) and text.strip()
        ]
        joined, starts, line = "", [], 1
        newline = "\r\n" if any("\r\n" in text for text in self.texts) else "\n"
        for i in usable:
            text = masked[i] if masked[i].endswith("\n") else masked[i] + newline
            joined += f"{PIECE} {i} {self.groups[i]}{newline}{text}"
            starts.append((line + 1, i))
            line += text.count("\n") + 1
        report = SourceReport()
        result = list(self.texts)
        new_masked = list(masked)
        new_starts: list[tuple[int, int]] = []
        if usable:
            data = joined.encode("utf-8", "surrogateescape")
            new, report = migrate_source(data, self.path, self.settings)
            pieces = re.split(
                rf"^{PIECE} (\d+) \d+\r?\n", new.decode("utf-8", "surrogateescape"), flags=re.MULTILINE
            )[1:]
            line = 1
            for index, piece in zip(pieces[::2], pieces[1::2]):
                i = int(index)
                new_starts.append((line + 1, i))
                line += piece.count("\n") + 1
                new_masked[i] = piece
                if not masked[i].endswith("\n"):
                    piece = piece.removesuffix(newline)
                result[i] = unmask(piece, magics[i])
            if len(pieces) // 2 != len(usable):
                raise Unreadable("a piece of code was lost")  # a safeguard: no known input causes it
        for entry in (*report.rewritten, *report.left):
            start, i = starts[max(bisect_right(starts, (entry.line, len(masked))) - 1, 0)]
            entry.line = self.line(i, entry.line - start)
            if entry.new_line is not None and new_starts:
                start, i = new_starts[max(bisect_right(new_starts, (entry.new_line, len(masked))) - 1, 0)]
                self.places.append((entry, i, entry.new_line - start))
        for i in unreadable:
            report.left.append(
                Diagnostic("HIER190", "a piece of code that is not valid Python", line=self.line(i, 0))
            )
            self.places.append((report.left[-1], i, 0))
        for i, hidden in enumerate(magics):
            report.left += self.masked_uses(i, hidden, masked[i], new_masked[i])
        return result, report

    def holds_use(self, text: str) -> bool:
        """Whether a piece that cannot be read is worth a report."""
        needle = PACKAGE.encode() if self.settings.group == UPSTREAM else NEEDLE
        return needle in text.encode("utf-8", "surrogateescape")

    def line(self, index: int, offset: int) -> int:
        lines = self.lines[index]
        return lines[min(max(offset, 0), len(lines) - 1)]

    def masked_uses(self, index: int, hidden: list[str], old: str, new: str) -> Iterator[Diagnostic]:
        """Removed names in magics and shell lines, which are never changed."""
        for number, part in enumerate(hidden):
            match = GONE_NAME.search(part) if self.settings.group != UPSTREAM else None
            if match is not None:
                inside = part.count("\n", 0, match.start())
                line, new_line = (
                    text.count("\n", 0, text.find(f"{MAGIC}{number} ")) + inside for text in (old, new)
                )
                entry = Diagnostic(
                    "HIER103", f"{match.group()} in a magic or a shell line", line=self.line(index, line)
                )
                self.places.append((entry, index, new_line))
                yield entry


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
        return True
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    try:
        cst.parse_module(text)  # accepts newer syntax than the running Python, and await at the top level
        return True
    except (cst.ParserSyntaxError, RecursionError):
        return False


def mask(text: str) -> tuple[str, list[str]]:
    """Replace IPython magics and shell lines by `pass` lines with their words; a cell magic hides its whole cell."""
    stripped = text.lstrip()
    if stripped.startswith("%%") and not re.match(r"%%(time|timeit|capture|prun|memit)\b", stripped):
        return masked_line(0, "" if ELSEWHERE.match(stripped) else text), [text]
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group(2) + text[match.end(2) : match.end()])
        return match.group(1) + masked_line(len(hidden) - 1, hidden[-1])

    masked = MAGICS.sub(hide, text)
    return (masked, hidden) if hidden and not is_python(text) else (text, [])


def masked_line(number: int, text: str) -> str:
    return f"{MAGIC}{number} {' '.join(dict.fromkeys(WORD.findall(text)))}"


def unmask(text: str, hidden: list[str]) -> str:
    return re.sub(re.escape(MAGIC) + r"(\d+) [^\r\n]*", lambda match: hidden[int(match.group(1))], text)
