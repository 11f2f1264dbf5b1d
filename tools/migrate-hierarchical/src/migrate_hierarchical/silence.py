"""Reads `# noqa: HIERxxx` comments, which silence a line as in ruff and flake8.

The id of a report silences it there; that of a rule leaves the use unchanged, as `--ignore` does in the whole run.
"""

from __future__ import annotations

import io
import re
import tokenize

NOQA = re.compile(r"#[ \t]*noqa(?:[ \t]*:[ \t]*([A-Z]+[0-9]+(?:[ \t,]+[A-Z]+[0-9]+)*))?", re.IGNORECASE)
SEPARATOR = re.compile(r"[ \t,]+")
EVERYTHING = "ALL"


class Silence:
    """What is silenced on which line of a text.

    bare: whether `# noqa` without ids counts; it silences everything. In Python, a comment on the first or the last
    line of a statement (of its header, if it has a body) applies to all of its lines.
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
        return bool({rule, EVERYTHING} & self.on(line))

    def names(self, line: int, rule: str) -> bool:
        """Whether a comment that applies to a line names the rule; one without ids does not."""
        return rule in self.on(line)

    def on(self, line: int) -> set[str]:
        """The ids that apply to a line."""
        if not self.rules:
            return set()
        lines = (line, *self.ends.get(line, ()))
        return set().union(*(self.rules.get(each, ()) for each in lines))


def ids(match: re.Match[str], bare: bool) -> set[str]:
    if match.group(1):
        return {each.upper() for each in SEPARATOR.split(match.group(1))}
    is_bare = not match.string[match.end() :].lstrip(" \t").startswith(":")
    return {EVERYTHING} if bare and is_bare else set()


def ends_of_statements(source: bytes) -> dict[int, tuple[int, int]]:
    """The first and last line of the statement, for every line of a statement of several lines."""
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
        pass  # the rest is treated as statements of one line
    return ends


NO_CODE = (
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
