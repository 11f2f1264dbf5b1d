"""Migrates notebooks: code cells, and blocks of Python in Markdown cells. Every other byte stays.

The blocks of Markdown see the names of the code cells; the code cells do not see theirs.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..diagnostic import Diagnostic
from ..removed_api import NEEDLE, PACKAGE
from ..settings import UPSTREAM, Settings
from .blocks import Blocks
from .prose import Piece, find_pieces, is_code, mentions, merge_odd_separators, with_sources
from .python import Unreadable
from .result import SourceReport

DECODER = json.JSONDecoder(strict=False)
SPACE = re.compile(r"[ \t\r\n]*")
MOST_LINES = 1 << 32  # of a cell; keeps the numbers of blocks of different cells apart


@dataclass(eq=False)
class Cell:
    """A cell; `begin` and `end` are those of its source in the JSON text."""

    kind: str
    begin: int
    end: int
    source: str = ""
    new: str = ""
    parts: list[str] = field(default_factory=list)  # lines of a Markdown cell
    lines: list[int] = field(default_factory=list)  # the line of the file that has each line of the source

    def line(self, offset: int) -> int:
        return self.lines[min(offset, len(self.lines) - 1)]


def skip(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None
    return match.end()


def members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Key, begin and end of every value of the JSON object that begins at a position."""
    at = skip(text, at + 1)
    while text[at] != "}":
        key, at = DECODER.raw_decode(text, at)
        begin = skip(text, skip(text, at) + 1)
        _, end = DECODER.raw_decode(text, begin)
        yield key, begin, end
        at = skip(text, end)
        if text[at] == ",":
            at = skip(text, at + 1)


def elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Begin and end of every element of the JSON array that begins at a position."""
    at = skip(text, at + 1)
    while text[at] != "]":
        _, end = DECODER.raw_decode(text, at)
        yield at, end
        at = skip(text, end)
        if text[at] == ",":
            at = skip(text, at + 1)


def cells_of(text: str) -> list[Cell]:
    """The code cells and the Markdown cells, in order; raises ValueError, KeyError or IndexError."""
    cells = []
    for key, begin, _ in members(text, skip(text, 0)):
        if key != "cells":
            continue
        for cell, _ in elements(text, begin):
            spans = {name: (start, end) for name, start, end in members(text, cell)}
            if "source" not in spans:
                continue
            kind = DECODER.raw_decode(text, spans["cell_type"][0])[0]
            if kind in ("code", "markdown"):
                cells.append(Cell(kind, *spans["source"]))
    return cells


def migrate_notebook(data: bytes, path: str, settings: Settings) -> tuple[bytes, SourceReport]:
    """The new bytes and the report; raises Unreadable."""
    try:
        bom = data.startswith(b"\xef\xbb\xbf")
        text = data[3:].decode() if bom else data.decode()
        json.loads(text, strict=False)
        cells = cells_of(text)
    except (ValueError, KeyError, IndexError, RecursionError):
        raise Unreadable("not a valid notebook") from None
    breaks = [match.start() for match in re.finditer("\n", text)]
    for cell in cells:
        value = DECODER.raw_decode(text, cell.begin)[0]
        parts_of_source = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts_of_source):
            raise Unreadable("not a valid notebook: the source of a cell is not text")
        cell.source = cell.new = "".join(parts_of_source)
        cell.lines = line_numbers(text, cell.begin, breaks)
    code = [cell for cell in cells if cell.kind == "code"]
    blocks = Blocks(
        [cell.source for cell in code], [cell.lines for cell in code], [0] * len(code), settings, path
    )
    new, report = blocks.migrate()
    for cell, source in zip(code, new):
        cell.new = source
    places = [(entry, code[index], offset) for entry, index, offset in blocks.places]
    places += migrate_markdown(cells, settings, path, report)
    parts, at = [], 0
    ascii_only = "\\u" in text and text.isascii()
    for cell in cells:
        if cell.new != cell.source:
            parts += [text[at : cell.begin], encode(text[cell.begin : cell.end], cell.new, ascii_only)]
            at = cell.end
    if not parts:
        return data, report
    out = "".join([*parts, text[at:]])
    breaks = [match.start() for match in re.finditer("\n", out)]
    for cell, now in zip(cells, cells_of(out)):
        cell.lines = line_numbers(out, now.begin, breaks)
    for entry, cell, offset in places:
        entry.new_line = cell.line(offset)
    return (b"\xef\xbb\xbf" if bom else b"") + out.encode(), report


def migrate_markdown(
    cells: list[Cell], settings: Settings, path: str, report: SourceReport
) -> list[tuple[Diagnostic, Cell, int]]:
    """Migrate the blocks of the Markdown cells; the diagnostics, each with its cell and its new line there."""
    needle = PACKAGE if settings.group == UPSTREAM else NEEDLE.decode()
    if not any(needle in cell.source for cell in cells if cell.kind == "markdown"):
        return []
    texts: list[str] = []
    lines: list[Sequence[int]] = []
    groups: list[int] = []
    found: list[tuple[Cell, list[Piece], list[Diagnostic], int]] = []
    for number, cell in enumerate(cells):
        if cell.kind == "code":  # only read here: line 0 marks what it reports a second time
            texts.append(cell.source)
            lines.append([0])
            groups.append(0)
            continue
        cell.parts = merge_odd_separators(cell.source.splitlines(keepends=True))
        pieces = find_pieces(cell.parts, "markdown")
        others = [each for each in pieces if not is_code(each) and settings.group != UPSTREAM]
        said = [entry for each in others for entry in mentions(each)]
        pieces = [each for each in pieces if is_code(each, settings.group)]
        found.append((cell, pieces, said, len(texts)))
        for piece in pieces:
            texts.append(piece.text)
            lines.append([cell.line(at) for at in range(piece.first, piece.last)])
            groups.append(number * MOST_LINES + piece.group + 1)
    blocks = Blocks(texts, lines, groups, settings, path)
    new, own = blocks.migrate()
    report.rewritten += [entry for entry in own.rewritten if entry.line]
    report.left += [entry for entry in own.left if entry.line]
    places: list[tuple[Diagnostic, Cell, int]] = []
    begins: dict[int, tuple[Cell, int]] = {}
    for cell, pieces, said, first in found:
        page = with_sources(cell.parts, pieces, new[first : first + len(pieces)])
        begins |= {first + i: (cell, begin) for i, begin in enumerate(page.begins)}
        cell.new = page.text
        for entry in said:
            line = entry.line - 1
            entry.line = cell.line(line)
            places.append((entry, cell, page.moved(line)))
        report.left += said
    places += [
        (entry, begins[index][0], begins[index][1] + offset)
        for entry, index, offset in blocks.places
        if index in begins
    ]
    for entries in (report.rewritten, report.left):
        entries.sort(key=lambda entry: entry.line)
    return places


def line_numbers(text: str, begin: int, breaks: list[int]) -> list[int]:
    """The line of the file that contains each line of a source."""
    starts = [start for start, _ in elements(text, begin)] if text[begin] == "[" else [begin]
    numbers = []
    for start in starts or [begin]:
        value = DECODER.raw_decode(text, start)[0]
        count = len(value.splitlines()) if isinstance(value, str) else 1
        numbers += [bisect_left(breaks, start) + 1] * max(1, count)
    return numbers


def encode(old: str, source: str, ascii_only: bool) -> str:
    """The JSON of a new source in the style of the old one; unchanged lines keep their bytes."""
    if not old.startswith("["):
        raw = re.findall(r"(?:[^\\]|\\[^n])*?\\n|(?:[^\\]|\\[^n])+$", old[1:-1])
        same = {json.loads(f'"{each}"', strict=False): each for each in raw}
        lines = re.split(r"(?<=\n)", source)
        return f'"{"".join(same.get(line) or json.dumps(line, ensure_ascii=ascii_only)[1:-1] for line in lines)}"'
    spans = list(elements(old, 0))
    known = {json.loads(old[begin:end], strict=False): old[begin:end] for begin, end in spans}
    lines = source.splitlines(keepends=True)
    parts, at = [], 0
    sizes = sorted({max(1, len(text.splitlines())) for text in known}, reverse=True)
    while at < len(lines):  # an element of the old list may have several lines
        size = next((each for each in sizes if "".join(lines[at : at + each]) in known), 1)
        text = "".join(lines[at : at + size])
        parts.append(known.get(text) or json.dumps(text, ensure_ascii=ascii_only))
        at += size
    if not spans or not parts:
        return "[" + ", ".join(parts) + "]"
    head, tail = old[: spans[0][0]], old[spans[-1][1] :]
    between = old[spans[0][1] : spans[1][0]] if len(spans) > 1 else "," + (head[1:] or " ")
    return head + between.join(parts) + tail
