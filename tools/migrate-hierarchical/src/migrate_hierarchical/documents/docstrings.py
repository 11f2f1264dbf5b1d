"""Python files with examples in their docstrings: doctest prompts and fenced blocks.

The examples are appended to the source, one function per docstring, so that they see the names of the module and
their own; then both are migrated together and taken apart again.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from dataclasses import dataclass, replace

from ..names import NEEDLE, PIECE, REMOVED
from ..settings import Settings
from .blocks import is_python
from .prose import Piece, find_pieces, is_code, mentions, put_back
from .python import Migrated, Unreadable, migrate_source
from .result import Entry

INDENT = "    "


@dataclass
class Example:
    """One piece of a docstring."""

    piece: Piece
    docstring: int  # the how manieth of the file
    offset: int  # lines from the first line of the docstring
    start: int = 0  # first line in the joined source


def migrate_python(data: bytes, path: str, settings: Settings) -> tuple[bytes, Migrated]:
    """New bytes and report; raises Unreadable."""
    if not any(mark in data for mark in (b">>>", b"```", b"~~~", b"::")):
        return migrate_source(data, path, settings)
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0].removesuffix("-sig")
        lines = re.split(r"(?<=\n)", data.decode(encoding))
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return migrate_source(data, path, settings)  # which says what is wrong
    examples, hidden = find_examples(data, lines)
    if not examples:
        new, report = migrate_source(data, path, settings)
        report.left += hidden
        return new, report
    joined, first = join(data, examples, encoding)
    new, report = migrate_source(joined, path, settings)
    head, sources = split(new.decode(encoding), lacks_newline=not data.endswith(b"\n"))
    if len(sources) != len(examples):
        raise Unreadable("an example of a docstring was lost")  # never seen; better than writing it
    for entry in (*report.rewritten, *report.left):
        if entry.line >= first:
            example = max(
                (each for each in examples if each.start <= entry.line), key=lambda each: each.start
            )
            entry.line += example.piece.first + 1 - example.start
    report.left += hidden
    new = put_examples(head, examples, sources).encode(encoding)
    try:
        ast.parse(new)
    except SyntaxError:
        raise Unreadable("an example does not fit in its docstring") from None
    return new, report


def find_examples(data: bytes, lines: list[str]) -> tuple[list[Example], list[Entry]]:
    """The examples that may hold a use, and those that cannot be changed because of escapes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # newer syntax than that of the running Python: where its docstrings are is not known
        pieces = [piece for piece in find_pieces(lines, "docstring") if piece.prompts]
        return [], [entry for piece in pieces for entry in hidden_use(piece, "beside newer syntax")]
    examples: list[Example] = []
    hidden: list[Entry] = []
    for number, (begin, end, raw) in enumerate(docstrings(tree, lines)):
        for piece in find_pieces(lines[begin:end], "docstring"):
            moved = replace(piece, first=piece.first + begin, last=piece.last + begin)
            if not is_code(piece):
                hidden += mentions(moved)
                continue
            if "\\" in piece.text and not raw:
                hidden += hidden_use(moved, "beside an escape")
            elif is_python(piece.text):
                examples.append(Example(moved, number, piece.first))
    relevant = {each.docstring for each in examples if NEEDLE.decode() in each.piece.text}
    return [each for each in examples if each.docstring in relevant], hidden


def hidden_use(piece: Piece, why: str) -> list[Entry]:
    """What is said of an example that cannot be changed."""
    names = [name for name in sorted(REMOVED) if name in piece.text]
    return [Entry(piece.first + 1, "HIER103", f"{names[0]} {why}")] if names else []


def docstrings(tree: ast.AST, lines: list[str]) -> list[tuple[int, int, bool]]:
    """First line, last line (excluded, with the closing quotes) and rawness of every string that is a statement."""
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
    """The source with the examples below it, and the line on which these begin."""
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


def split(text: str, lacks_newline: bool) -> tuple[str, list[str]]:
    """The source and the examples of a joined text."""
    head, *rest = re.split(rf"^(?:def _\(\):\r?\n)?{INDENT}{PIECE} \d+\r?\n", text, flags=re.MULTILINE)
    if lacks_newline:
        head = head.removesuffix("\n").removesuffix("\r")
    sources = ["".join(part.removeprefix(INDENT) for part in re.split(r"(?<=\n)", each)) for each in rest]
    return head, sources


def put_examples(head: str, examples: list[Example], sources: list[str]) -> str:
    """The migrated source with the migrated examples in its docstrings, which have moved but did not change."""
    lines = re.split(r"(?<=\n)", head)
    places = docstrings(ast.parse(head.encode()), lines)
    for example, source in reversed(list(zip(examples, sources))):
        if source == example.piece.text:
            continue
        begin = places[example.docstring][0] + example.offset
        end = begin + example.piece.last - example.piece.first
        lines[begin:end] = put_back(example.piece, source, lines[begin:end])
    return "".join(lines)
