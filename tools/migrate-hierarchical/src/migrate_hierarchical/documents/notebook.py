"""Migrates notebooks: only the source of changed code cells changes, every other byte stays."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator

from ..settings import Settings
from .blocks import Blocks
from .python import Unreadable
from .result import SourceReport

DECODER = json.JSONDecoder(strict=False)
SPACE = re.compile(r"[ \t\r\n]*")


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


def code_cells(text: str) -> list[tuple[int, int]]:
    """Begin and end of the source value of every code cell."""
    cells = []
    for key, begin, _ in members(text, skip(text, 0)):
        if key != "cells":
            continue
        for cell, _ in elements(text, begin):
            spans = {name: (start, end) for name, start, end in members(text, cell)}
            if "source" in spans and DECODER.raw_decode(text, spans["cell_type"][0])[0] == "code":
                cells.append(spans["source"])
    return cells


def migrate_notebook(data: bytes, path: str, settings: Settings) -> tuple[bytes, SourceReport]:
    """The new bytes and the report; raises Unreadable."""
    try:
        bom = data.startswith(b"\xef\xbb\xbf")
        text = data[3:].decode() if bom else data.decode()
        json.loads(text, strict=False)
        cells = code_cells(text)
    except (ValueError, KeyError, IndexError, RecursionError):
        raise Unreadable("not a valid notebook") from None
    sources = []
    for begin, _ in cells:
        value = DECODER.raw_decode(text, begin)[0]
        parts_of_source = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts_of_source):
            raise Unreadable("not a valid notebook: the source of a cell is not text")
        sources.append("".join(parts_of_source))
    breaks = [match.start() for match in re.finditer("\n", text)]
    lines = [line_numbers(text, begin, breaks) for begin, _ in cells]
    blocks = Blocks(sources, lines, [0] * len(sources), settings, path)
    new, report = blocks.migrate()
    parts, at = [], 0
    ascii_only = "\\u" in text and text.isascii()
    for (begin, end), old_source, new_source in zip(cells, sources, new):
        if new_source != old_source:
            parts += [text[at:begin], encode(text[begin:end], new_source, ascii_only)]
            at = end
    if not parts:
        return data, report
    out = "".join([*parts, text[at:]])
    breaks = [match.start() for match in re.finditer("\n", out)]
    lines = [line_numbers(out, begin, breaks) for begin, _ in code_cells(out)]
    for entry, index, offset in blocks.places:
        entry.new_line = lines[index][min(offset, len(lines[index]) - 1)]
    return (b"\xef\xbb\xbf" if bom else b"") + out.encode(), report


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
        return json.dumps(source, ensure_ascii=ascii_only)
    spans = list(elements(old, 0))
    known = {json.loads(old[begin:end], strict=False): old[begin:end] for begin, end in spans}
    lines = source.splitlines(keepends=True)
    parts = [known.get(line) or json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    if not spans or not parts:
        return "[" + ", ".join(parts) + "]"
    head, tail = old[: spans[0][0]], old[spans[-1][1] :]
    between = old[spans[0][1] : spans[1][0]] if len(spans) > 1 else "," + (head[1:] or " ")
    return head + between.join(parts) + tail
