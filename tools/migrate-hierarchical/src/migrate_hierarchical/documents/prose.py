"""Markdown and reStructuredText: fenced and indented Python blocks, doctest examples."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..settings import Settings
from .blocks import Blocks
from .python import Migrated, Unreadable

FENCE = re.compile(r"^([ \t>]*)(`{3,}|~{3,})[ \t]*\{?\.?([\w+-]*)")
LANGUAGES = {"python", "py", "python3", "pycon", "doctest", "ipython", "python-repl", "pyi", "code-cell"}
DIRECTIVE = re.compile(
    r"^([ \t]*)\.\. (?:code-block|code|sourcecode|ipython|testcode|jupyter-execute)::[ \t]*([\w-]*)"
)
BARE_DIRECTIVES = ("testcode", "jupyter-execute")
PROMPT = re.compile(r"^([ \t>]*)>>> ?")


@dataclass
class Piece:
    """Lines first..last (excluded) of a page, without their margin and prompts."""

    first: int
    last: int
    margin: str
    prompts: bool
    text: str
    group: int = 0  # the block that it is a part of; 0 for examples between paragraphs


def migrate_page(data: bytes, path: str, settings: Settings) -> tuple[bytes, Migrated]:
    """New bytes and report; raises Unreadable."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"cannot be decoded: {error}") from None
    lines = text.splitlines(keepends=True)
    lines = merge_odd_separators(lines)
    pieces = find_pieces(lines, is_rst=path.endswith(".rst"))
    texts, numbers = (
        [piece.text for piece in pieces],
        [range(piece.first + 1, piece.last + 1) for piece in pieces],
    )
    blocks = Blocks(texts, numbers, [piece.group for piece in pieces], settings, path)
    new, report = blocks.migrate()
    for piece, source in reversed(list(zip(pieces, new))):
        if source != piece.text:
            lines[piece.first : piece.last] = put_back(piece, source)
    return "".join(lines).encode(), report


def merge_odd_separators(lines: list[str]) -> list[str]:
    """Lines as editors count them: form feeds and the like do not end one."""
    merged: list[str] = []
    for line in lines:
        if merged and not merged[-1].endswith(("\n", "\r")):
            merged[-1] += line
        else:
            merged.append(line)
    return merged


def find_pieces(lines: list[str], is_rst: bool) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    while at < len(lines):
        fence = None if is_rst else FENCE.match(lines[at])
        directive = DIRECTIVE.match(lines[at]) if is_rst else None
        begin, known = at, len(pieces)
        if fence is not None:
            at = fenced(lines, at, fence, pieces)
        elif directive is not None:
            at = directed(lines, at, directive, pieces)
        elif PROMPT.match(lines[at]):
            at = examples(lines, at, len(lines), pieces)
        else:
            at += 1
        if fence is not None or directive is not None:
            for piece in pieces[known:]:
                piece.group = begin + 1
    return pieces


def fenced(lines: list[str], at: int, fence: re.Match[str], pieces: list[Piece]) -> int:
    """Take the block that a fence opens; the index after it."""
    margin, marks, language = fence.groups()
    close = re.compile(rf"^[ \t>]*{re.escape(marks[0])}{{{len(marks)},}}[ \t]*$")
    end = at + 1
    while end < len(lines) and not close.match(lines[end].rstrip("\r\n")):
        end += 1
    if language.lower() in LANGUAGES:
        take(lines, at + 1, end, margin, pieces)
    return end + 1


def directed(lines: list[str], at: int, directive: re.Match[str], pieces: list[Piece]) -> int:
    """Take the indented block of a reStructuredText directive; the index after it."""
    outer, language = directive.groups()
    bare = any(name in directive.group() for name in BARE_DIRECTIVES)
    begin = at + 1
    while begin < len(lines) and (not lines[begin].strip() or lines[begin].strip().startswith(":")):
        begin += 1
    end = begin
    while end < len(lines) and (not lines[end].strip() or indentation(lines[end]).startswith(outer + " ")):
        end += 1
    while end > begin and not lines[end - 1].strip():
        end -= 1
    if end > begin and (bare or language.lower() in LANGUAGES):
        take(lines, begin, end, indentation(lines[begin]), pieces)
    return max(end, at + 1)


def indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def take(lines: list[str], begin: int, end: int, margin: str, pieces: list[Piece]) -> None:
    if any(PROMPT.match(line) for line in lines[begin:end]):
        at = begin
        while at < end:
            at = examples(lines, at, end, pieces) if PROMPT.match(lines[at]) else at + 1
        return
    block = lines[begin:end]
    filled = [line for line in block if line.strip()]
    if any(not line.startswith(margin) for line in filled):
        margin = ""
    text = "".join(line[len(margin) :] if line.startswith(margin) else line.lstrip(" \t>") for line in block)
    pieces.append(Piece(begin, end, margin, False, text))


def examples(lines: list[str], at: int, stop: int, pieces: list[Piece]) -> int:
    """Take one doctest example: its prompt and the continuation lines."""
    match = PROMPT.match(lines[at])
    assert match is not None
    margin = match.group(1)
    text, end = lines[at][match.end() :], at + 1
    while end < stop and lines[end].startswith(margin + "..."):
        text += lines[end][len(margin) + 3 :].removeprefix(" ")
        end += 1
    pieces.append(Piece(at, end, margin, True, text))
    return end


def put_back(piece: Piece, source: str) -> list[str]:
    """The lines of a new source with margin and prompts."""
    lines = source.splitlines(keepends=True)
    if not piece.prompts:
        return [piece.margin + line if line.strip() else line for line in lines]
    result = []
    statement = True
    for line in lines:
        prompt = ">>>" if statement else "..."
        statement = line.startswith("from ") and not line.rstrip().endswith(
            "("
        )  # a split import: two examples
        result.append(f"{piece.margin}{prompt} {line}" if line.strip() else f"{piece.margin}{prompt}{line}")
    return result
