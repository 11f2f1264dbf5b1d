"""`# noqa: HIERxxx`: places whose reports a person has silenced, in the manner of ruff and flake8."""

from __future__ import annotations

import io
import re
import tokenize

NOQA = re.compile(r"#[ \t]*noqa(?:[ \t]*:[ \t]*([A-Z]+[0-9]+(?:[ \t,]+[A-Z]+[0-9]+)*))?", re.IGNORECASE)
SEPARATOR = re.compile(r"[ \t,]+")
EVERYTHING = "ALL"


class Silence:
    """What is silenced on which line of a text.

    `bare` says whether `# noqa` without ids counts, and silences everything. In Python, a comment on the first or the
    last line of a statement (of its head, where it has a body) holds for all of its lines.
    """

    def __init__(self, source: bytes, bare: bool, is_python: bool) -> None:
        self.rules: dict[int, set[str]] = {}
        self.ends: dict[int, tuple[int, int]] = {}  # line -> first and last line of its statement
        if b"noqa" not in source.lower():
            return
        for number, line in enumerate(source.splitlines(), 1):
            for match in NOQA.finditer(line.decode("latin-1")):
                found = ids(match, bare)
                if found:
                    self.rules.setdefault(number, set()).update(found)
        if self.rules and is_python:
            self.ends = ends_of_statements(source)

    def covers(self, line: int, rule: str) -> bool:
        """Whether reports of a rule are silenced on a line."""
        if not self.rules:
            return False
        return any(
            {rule, EVERYTHING} & self.rules.get(each, set()) for each in (line, *self.ends.get(line, ()))
        )


def ids(match: re.Match[str], bare: bool) -> set[str]:
    if match.group(1):
        return {each.upper() for each in SEPARATOR.split(match.group(1))}
    is_bare = not match.string[match.end() :].lstrip(" \t").startswith(":")
    return {EVERYTHING} if bare and is_bare else set()


def ends_of_statements(source: bytes) -> dict[int, tuple[int, int]]:
    """First and last line of the statement, for every line of one that has several."""
    ends: dict[int, tuple[int, int]] = {}
    first = 0
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.NEWLINE:
                last = token.start[0]
                if last > first > 0:
                    ends.update((line, (first, last)) for line in range(first, last + 1))
                first = 0
            elif not first and token.type not in NO_CODE:
                first = token.start[0]
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass  # what comes after it has no statements of several lines
    return ends


NO_CODE = (
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
