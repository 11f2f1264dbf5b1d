"""Migrates Markdown and reStructuredText: fenced and indented Python blocks, doctest examples.

A block is code if its markup says Python: a fence or a directive with the language, a doctest prompt. A literal block
(`::`, or a directive without a language) is code if it is valid Python. Blocks that are not valid Python, and shell
blocks that run Python, are reported if they use a removed name, but never changed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..diagnostic import Diagnostic
from ..lines import opcodes
from ..removed_api import NEEDLE, PACKAGE
from ..settings import HIERARCHICAL_GROUP, UPSTREAM, Settings
from .blocks import GONE_NAME, Blocks, is_python
from .python import Unreadable
from .result import SourceReport

Markup = Literal["markdown", "rst", "docstring"]
Kind = Literal["python", "literal", "shell"]

# The beginning of a line: blanks, quotation marks, list markers.
PREFIX = re.compile(r"(?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])*")
FENCE = re.compile(r"(`{3,}|~{3,})([^\r\n]*)")
ATTRIBUTES = re.compile(r"\{([^}]*)\}[ \t]*([\w+-]*)")
WORD = re.compile(r"[\w+-]+")
DIRECTIVE = re.compile(r"\.\. (code-block|code|sourcecode|ipython|testcode|jupyter-execute)::[ \t]*([\w+-]*)")
PROMPT = re.compile(r"^([ \t>]*)(>>>|In \[\d+\]:) ?")  # of Python, of IPython
LANGUAGES = frozenset(
    [
        "python",
        "py",
        "python3",
        "py3",
        "pycon",
        "pycon3",
        "doctest",
        "ipython",
        "ipython3",
        "python-repl",
        "python-console",
        "pythonconsole",
        "py-repl",
        "pyrepl",
        "ipythonconsole",
        "pyi",
    ]
)
SHELLS = frozenset(
    [
        "bash",
        "sh",
        "shell",
        "console",
        "zsh",
        "ksh",
        "fish",
        "shell-session",
        "sh-session",
        "bash-session",
        "terminal",
    ]
)
PYTHON_DIRECTIVES = frozenset({"ipython", "testcode", "jupyter-execute"})
MYST_DIRECTIVES = frozenset({"code-block", "code", "sourcecode", "code-cell"})
# Names for no language: a prompt in such a block says Python.
PLAIN = frozenset({"", "text", "txt", "plain", "plaintext", "none", "output"})
OPTION = re.compile(r"[ \t>]*:[\w-]+:")  # of a directive of MyST, before its code
RUNS_PYTHON = re.compile(r"\bi?python[\d.]*\b|^[ \t]*(?:>>>|In \[\d+\]:) ", re.MULTILINE)
LOOKS_LIKE_CODE = re.compile(rf"\bimport\b.*{GONE_NAME.pattern}|{GONE_NAME.pattern}[ \t]*\(")


@dataclass
class Piece:
    """The lines first..last (excluded) of a page, without margin and prompts."""

    first: int
    last: int
    margin: str
    prompts: tuple[str, str] | None  # of the first line, and of the continuation lines
    text: str
    group: int = 0  # the block to which it belongs; 0 for examples between paragraphs
    kind: Kind = "python"


def migrate_page(data: bytes, path: str, settings: Settings) -> tuple[bytes, SourceReport]:
    """The new bytes and the report; raises Unreadable."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"cannot be decoded: {error}") from None
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    lines = merge_odd_separators(text.removeprefix(mark).splitlines(keepends=True))
    found = find_pieces(lines, "rst" if path.endswith(".rst") else "markdown")
    pieces = [piece for piece in found if is_code(piece, settings.group)]
    texts = [piece.text for piece in pieces]
    numbers = [range(piece.first + 1, piece.last + 1) for piece in pieces]
    blocks = Blocks(texts, numbers, [piece.group for piece in pieces], settings, path)
    new, report = blocks.migrate()
    other = [piece for piece in found if not is_code(piece) and settings.group != UPSTREAM]
    said = [entry for piece in other for entry in mentions(piece)]
    report.left += said
    page = with_sources(lines, pieces, new)
    for entry, index, offset in blocks.places:
        entry.new_line = page.begins[index] + offset + 1
    for entry in said:
        entry.new_line = page.moved(entry.line - 1) + 1
    return (mark + page.text).encode(), report


class NewPage(NamedTuple):
    """A page with the new sources of its pieces; lines are counted from 0."""

    text: str
    begins: list[int]
    """The line where each piece begins now."""
    shifts: list[tuple[int, int]]
    """From an old line on, by how much those below moved."""

    def moved(self, line: int) -> int:
        """Where an old line outside of the pieces is now."""
        return line + self.shifts[bisect_right(self.shifts, (line, len(self.text))) - 1][1]


def with_sources(lines: list[str], pieces: Sequence[Piece], sources: Sequence[str]) -> NewPage:
    """The lines of a page with the new sources of its pieces."""
    out: list[str] = []
    begins, shifts, at = [], [(0, 0)], 0
    for piece, source in zip(pieces, sources):
        old = lines[piece.first : piece.last]
        out += lines[at : piece.first]
        begins.append(len(out))
        out += old if source == piece.text else put_back(piece, source, old)
        at = piece.last
        shifts.append((at, len(out) - at))
    return NewPage("".join(out + lines[at:]), begins, shifts)


def is_code(piece: Piece, group: str = HIERARCHICAL_GROUP) -> bool:
    """Whether a piece is migrated."""
    if piece.kind == "literal":
        needle = PACKAGE if group == UPSTREAM else NEEDLE.decode()
        return needle in piece.text and is_python(piece.text)
    return piece.kind == "python"


def mentions(piece: Piece) -> Iterator[Diagnostic]:
    """Diagnostics for removed names in a piece that is not migrated."""
    if piece.kind == "shell" and not RUNS_PYTHON.search(piece.text):
        return
    where = "a shell block" if piece.kind == "shell" else "a block that is not valid Python"
    for number, line in enumerate(piece.text.splitlines(), piece.first + 1):
        match = GONE_NAME.search(line) if piece.kind == "shell" or LOOKS_LIKE_CODE.search(line) else None
        if match is not None:
            yield Diagnostic("HIER103", f"{match.group()} in {where}", line=number)


def merge_odd_separators(lines: list[str]) -> list[str]:
    """Lines as editors count them: a form feed and the like do not end a line."""
    merged: list[str] = []
    for line in lines:
        if merged and not merged[-1].endswith(("\n", "\r")):
            merged[-1] += line
        else:
            merged.append(line)
    return merged


def find_pieces(lines: list[str], markup: Markup) -> list[Piece]:
    """The blocks and examples of a page, in order; docstrings may use either markup."""
    pieces: list[Piece] = []
    at = 0
    while at < len(lines):
        line = lines[at].rstrip()
        prefix = first_part(line)
        rest = line[len(prefix) :]
        fence = None if markup == "rst" else FENCE.match(rest)
        if fence is not None and fence.group(1)[0] == "`" and "`" in fence.group(2):
            fence = None  # code inside a line
        directive = None if markup == "markdown" else DIRECTIVE.match(rest)
        begin, known = at, len(pieces)
        if fence is not None:
            at = fenced(lines, at, prefix, fence, pieces)
        elif directive is not None:
            at = indented(lines, at, prefix, kind_of_directive(directive), pieces, has_options=True)
        elif markup != "markdown" and rest.endswith("::") and not rest.startswith(".. "):
            at = indented(lines, at, prefix, "literal", pieces)
        elif PROMPT.match(lines[at]):
            at = examples(lines, at, len(lines), pieces)
            continue
        else:
            at += 1
        for piece in pieces[known:]:
            piece.group = begin + 1
    return pieces


def kind_of(language: str) -> Kind | None:
    language = language.lower()
    return "python" if language in LANGUAGES else "shell" if language in SHELLS else None


def kind_of_directive(directive: re.Match[str]) -> Kind | None:
    name, language = directive.groups()
    if name in PYTHON_DIRECTIVES:
        return "python"
    return kind_of(language) if language else "literal"


def kind_of_fence(info: str) -> Kind | None:
    """The kind of a block by the text after its fence: ```python, ```{.python #id}, ```{code-block} python."""
    attributes = ATTRIBUTES.match(info.strip())
    if attributes is None:
        word = WORD.match(info.strip().lstrip("."))
        return kind_of(word.group()) if word else None
    inside, behind = attributes.groups()
    name = inside.strip()
    if name in MYST_DIRECTIVES:
        return "python" if name == "code-cell" and not behind else kind_of(behind)
    first = WORD.match(name)
    names = re.findall(r"\.([\w+-]+)", name) + ([first.group()] if first else [])
    return next((kind for kind in map(kind_of, names) if kind), None)


def fenced(lines: list[str], at: int, prefix: str, fence: re.Match[str], pieces: list[Piece]) -> int:
    """Add the block that a fence opens; returns the index of the line after it."""
    marks, info = fence.groups()
    close = re.compile(rf"^[ \t>]*{re.escape(marks[0])}{{{len(marks)},}}[ \t]*$")
    end = at + 1
    while end < len(lines) and not close.match(lines[end].rstrip("\r\n")):
        if ">" in prefix and ">" not in leading(lines[end], ">"):
            break  # the quotation ends, and so does the block
        end += 1
    begin, kind = at + 1, kind_of_fence(info)
    if info.lstrip().startswith("{"):
        begin = after_options(lines, begin, end)
    if kind is None and is_plain(info) and any(PROMPT.match(line) for line in lines[begin:end]):
        kind = "python"
    take(lines, begin, end, re.sub(r"[^ \t>]", " ", prefix), kind, pieces)
    is_closed = end < len(lines) and close.match(lines[end].rstrip("\r\n"))
    return end + 1 if is_closed else end


def is_plain(info: str) -> bool:
    """Whether the text after a fence names no language."""
    attributes = ATTRIBUTES.match(info.strip())
    if attributes is None:
        return info.strip().lower() in PLAIN
    return attributes.group(1).strip() in MYST_DIRECTIVES and attributes.group(2).lower() in PLAIN


def after_options(lines: list[str], begin: int, end: int) -> int:
    """The index of the first line of code after `:option: value` lines, or after options between `---` lines."""
    bare = [line.strip(" \t>\r\n") for line in lines[begin:end]]
    if bare[:1] == ["---"] and "---" in bare[1:]:
        return begin + bare.index("---", 1) + 1
    while begin < end and OPTION.match(lines[begin]):
        begin += 1
    return begin


def first_part(line: str) -> str:
    match = PREFIX.match(line)
    return match.group() if match else ""


def indented(
    lines: list[str], at: int, prefix: str, kind: Kind | None, pieces: list[Piece], has_options: bool = False
) -> int:
    """Add the indented block below a line of reStructuredText; returns the index of the line after it."""
    outer = re.sub(r"[^ \t]", " ", prefix)
    begin = at + 1
    while begin < len(lines) and (
        not lines[begin].strip() or (has_options and lines[begin].strip().startswith(":"))
    ):
        begin += 1
    if begin == at + 1 and not has_options:
        return at + 1  # without a blank line it is not a literal block
    end = begin
    while end < len(lines) and (not lines[end].strip() or is_deeper(lines[end], outer)):
        end += 1
    while end > begin and not lines[end - 1].strip():
        end -= 1
    if end > begin:
        take(lines, begin, end, leading(lines[begin]), kind, pieces)
    return max(end, at + 1)


def leading(line: str, more: str = "") -> str:
    """The indentation of a line."""
    return line[: len(line) - len(line.lstrip(" \t" + more))]


def is_deeper(line: str, outer: str) -> bool:
    return len(leading(line).expandtabs()) > len(outer.expandtabs())


def take(lines: list[str], begin: int, end: int, margin: str, kind: Kind | None, pieces: list[Piece]) -> None:
    """Add the pieces of a block: the whole block, or each of its doctest examples."""
    if kind is None:
        return
    if kind != "shell" and any(PROMPT.match(line) for line in lines[begin:end]):
        at = begin
        while at < end:
            at = examples(lines, at, end, pieces) if PROMPT.match(lines[at]) else at + 1
        return
    quote = ">" if ">" in margin else ""
    block = lines[begin:end]
    filled = [line for line in block if line.strip(" \t\r\n" + quote)]
    if any(not line.startswith(margin) for line in filled):
        margin = min((leading(line, quote) for line in filled), key=len)
        margin = margin if all(line.startswith(margin) for line in filled) else ""
    text = "".join(
        line[len(margin) :] if line.startswith(margin) else line.lstrip(" \t" + quote) for line in block
    )
    pieces.append(Piece(begin, end, margin, None, text, kind=kind))


def examples(lines: list[str], at: int, stop: int, pieces: list[Piece]) -> int:
    """Add one doctest example, the line with its prompt and the continuation lines; returns the index after it."""
    match = PROMPT.match(lines[at])
    assert match is not None
    margin, prompt = match.groups()
    more = "..." if prompt == ">>>" else "...:".rjust(len(prompt))
    is_more = re.compile(
        re.escape(margin + "...") if prompt == ">>>" else re.escape(margin) + r"[ \t]*\.{3,}:"
    )
    text, end = lines[at][match.end() :], at + 1
    while end < stop and (found := is_more.match(lines[end])) is not None:
        more = found.group()[len(margin) :]
        text += lines[end][found.end() :].removeprefix(" ")
        end += 1
    pieces.append(Piece(at, end, margin, (prompt, more), text))
    return end


def put_back(piece: Piece, source: str, old: list[str]) -> list[str]:
    """The lines of a new source with margin and prompts; unchanged lines keep their exact characters."""
    lines = source.splitlines(keepends=True)
    if piece.prompts is None:
        empty = piece.margin.rstrip() if ">" in piece.margin else ""
        texts = merge_odd_separators(piece.text.splitlines(keepends=True))
        lines = merge_odd_separators(lines)
        result = []
        for tag, begin, end, new_begin, new_end in opcodes(
            *([t.encode() for t in each] for each in (texts, lines))
        ):
            if tag == "equal":
                result += old[begin:end]
            else:
                new = lines[new_begin:new_end]
                result += [piece.margin + line if line.strip() else empty + line for line in new]
        return result
    result = []
    first, more = piece.prompts
    statement = True
    for line in lines:
        prompt = first if statement else more
        # an import that was split makes two examples; IPython accepts them as one
        statement = first == ">>>" and line.startswith("from ") and not line.rstrip().endswith("(")
        result.append(f"{piece.margin}{prompt} {line}" if line.strip() else f"{piece.margin}{prompt}{line}")
    return result
