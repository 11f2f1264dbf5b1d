"""Migrates Python files with examples in their docstrings: doctest prompts and fenced blocks.

The examples are appended to the source, one function per docstring, so that they see their own names and those of the
module. Then both are migrated together and split again.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import accumulate

from ..diagnostic import Diagnostic
from ..removed_api import NEEDLE, PACKAGE, PIECE, REMOVED_NAMES
from ..settings import UPSTREAM, Settings
from ..upstream.old_api import NAMES, RENAMED, WITHOUT_SUCCESSOR
from .blocks import is_python
from .prose import Piece, find_pieces, is_code, mentions, put_back
from .python import Unreadable, migrate_source
from .result import SourceReport

INDENT = "    "
NEEDLE_PATTERN = re.compile(re.escape(NEEDLE.decode()))
OLD_NAMES = frozenset({*RENAMED, *WITHOUT_SUCCESSOR})
OLD_NEEDLE = re.compile(rf"\b{PACKAGE}\b|\b({'|'.join(sorted(NAMES))})\b")


@dataclass
class Example:
    """One example of a docstring."""

    piece: Piece
    docstring: int  # index of its docstring in the file
    offset: int  # its first line, counted from that of the docstring
    start: int = 0  # its first line in the joined source


def migrate_python(data: bytes, path: str, settings: Settings) -> tuple[bytes, SourceReport]:
    """The new bytes and the report; raises Unreadable."""
    if b"\r" in data and b"\n" not in data:  # libcst loses the last newline of such a file
        new, report = migrate_python(data.replace(b"\r", b"\n"), path, settings)
        return new.replace(b"\n", b"\r"), report
    if not any(mark in data for mark in (b">>>", b"In [", b"```", b"~~~", b"::")):
        return migrate_source(data, path, settings)
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0].removesuffix("-sig")
        lines = re.split(r"(?<=\n)", data.decode(encoding))
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return migrate_source(data, path, settings)  # reports what is wrong
    examples, hidden = find_examples(data, lines, settings.group)
    if not examples:
        new, report = migrate_source(data, path, settings)
        report.left += hidden
        return new, report
    joined, first = join(data, examples, encoding)
    new, report = migrate_source(joined, path, settings)
    head, sources, begins = split(new.decode(encoding), lacks_newline=not data.endswith(b"\n"))
    if len(sources) != len(examples):
        raise Unreadable("an example of a docstring was lost")  # a safeguard: no known input causes it
    text, places = put_examples(head, examples, sources)
    starts = [example.start for example in examples]
    sizes = [each.piece.last - each.piece.first for each in examples]
    moves = [0, *accumulate(end - begin - size for (begin, end), size in zip(places, sizes))]
    # where the examples end, in line numbers from before any of them changed
    ends = [end - move for (_, end), move in zip(places, moves[1:])]
    for entry in (*report.rewritten, *report.left):
        if entry.line >= first:
            number = bisect_right(starts, entry.line) - 1
            entry.line += examples[number].piece.first + 1 - starts[number]
        if entry.new_line is None:
            continue
        if entry.new_line >= begins[0]:
            number = bisect_right(begins, entry.new_line) - 1
            entry.new_line += places[number][0] + 1 - begins[number]
        else:
            entry.new_line += moves[bisect_right(ends, entry.new_line - 1)]
    report.left += hidden
    for entries in (report.rewritten, report.left):
        entries.sort(key=lambda entry: entry.line)
    new = text.encode(encoding)
    try:
        ast.parse(new)
    except SyntaxError:
        raise Unreadable("an example does not fit in its docstring") from None
    return new, report


def find_examples(data: bytes, lines: list[str], group: str) -> tuple[list[Example], list[Diagnostic]]:
    """The examples that may contain a use, and reports of those that cannot be changed because of escapes."""
    names = OLD_NAMES if group == UPSTREAM else REMOVED_NAMES
    needle = OLD_NEEDLE if group == UPSTREAM else NEEDLE_PATTERN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # syntax newer than the running Python: it is unknown where the docstrings are
        pieces = [piece for piece in find_pieces(lines, "docstring") if piece.prompts]
        return [], [entry for piece in pieces for entry in hidden_use(piece, "beside newer syntax", names)]
    examples: list[Example] = []
    hidden: list[Diagnostic] = []
    for number, (begin, end, raw) in enumerate(docstrings(tree, lines)):
        for piece in find_pieces(lines[begin:end], "docstring"):
            moved = replace(piece, first=piece.first + begin, last=piece.last + begin)
            if not is_code(piece, group):
                hidden += mentions(moved) if group != UPSTREAM else ()
                continue
            if "\\" in piece.text and not raw:
                hidden += hidden_use(moved, "beside an escape", names)
            elif is_python(piece.text):
                examples.append(Example(moved, number, piece.first))
    relevant = {each.docstring for each in examples if needle.search(each.piece.text)}
    return [each for each in examples if each.docstring in relevant], hidden


def hidden_use(piece: Piece, why: str, names: Collection[str]) -> list[Diagnostic]:
    """The report of an example that cannot be changed."""
    reason = "HIER103" if names is REMOVED_NAMES else "UP110"
    found = [name for name in sorted(names) if name in piece.text]
    return [Diagnostic(reason, f"{found[0]} {why}", line=piece.first + 1)] if found else []


def docstrings(tree: ast.AST, lines: list[str]) -> list[tuple[int, int, bool]]:
    """Every string of several lines that is a statement: first line, last line (excluded), whether it is raw."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        value = node.value
        if isinstance(value.value, str) and value.end_lineno is not None and value.end_lineno > value.lineno:
            start = lines[value.lineno - 1].encode()[value.col_offset :][:2].lower()
            found.append((value.lineno, value.end_lineno - 1, b"r" in start))
    return sorted(found)


def join(data: bytes, examples: list[Example], encoding: str) -> tuple[bytes, int]:
    """The source with the examples appended, and the line on which these begin."""
    newline = "\r\n" if b"\r\n" in data else "\n"
    first = line = data.count(b"\n") + 1 + (not data.endswith(b"\n"))
    text = "" if data.endswith(b"\n") else newline
    docstring = -1
    for example in examples:
        if example.docstring != docstring:
            text += f"def _():{newline}"
            docstring = example.docstring
            line += 1
        text += f"{INDENT}{PIECE} {example.piece.group}{newline}"
        example.start = line + 1
        body = example.piece.text if example.piece.text.endswith("\n") else example.piece.text + newline
        text += "".join(INDENT + part for part in re.split(r"(?<=\n)", body) if part)
        line += 1 + body.count("\n")
    return data + text.encode(encoding), first


def split(text: str, lacks_newline: bool) -> tuple[str, list[str], list[int]]:
    """The source and the examples of a joined text, and the line on which each example begins."""
    marks = re.compile(rf"^(?:def _\(\):\r?\n)?{INDENT}{PIECE} \d+\r?\n", re.MULTILINE)
    head, *rest = marks.split(text)
    begins, at, line = [], 0, 1
    for mark in marks.finditer(text):
        line += text.count("\n", at, mark.end())
        at = mark.end()
        begins.append(line)
    if lacks_newline:
        head = head.removesuffix("\n").removesuffix("\r")
    sources = ["".join(part.removeprefix(INDENT) for part in re.split(r"(?<=\n)", each)) for each in rest]
    return head, sources, begins


def put_examples(head: str, examples: list[Example], sources: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The migrated source with the migrated examples in its docstrings, and the lines of each: first, last (excluded).

    The docstrings in `head` have moved, but still contain the old examples.
    """
    lines = re.split(r"(?<=\n)", head)
    docs = docstrings(ast.parse(head.encode()), lines)
    out: list[str] = []
    places, at = [], 0
    for example, source in zip(examples, sources):
        begin = docs[example.docstring][0] + example.offset
        end = begin + example.piece.last - example.piece.first
        out += lines[at:begin]
        first, old = len(out), lines[begin:end]
        out += old if source == example.piece.text else put_back(example.piece, source, old)
        places.append((first, len(out)))
        at = end
    return "".join(out + lines[at:]), places
