"""Reads the comments of a syntax tree, and what they say about an import."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from .source_index import SourceIndex

# Comments with which linters accept an unused import.
UNUSED = re.compile(
    r"#\s*noqa(?!\s*:)|#\s*noqa\s*:[^#]*\bF401\b|pylint:\s*disable=[^#]*\bunused-import\b", re.IGNORECASE
)


def comments_in(node: cst.CSTNode) -> Iterator[str]:
    """The comments inside an expression, in order."""
    if isinstance(node, cst.Comment):
        yield node.value
    for child in node.children:
        yield from comments_in(child)


def is_meant_for_others(statement: cst.ImportFrom, alias: cst.ImportAlias, source: SourceIndex) -> bool:
    """Whether a comment marks an import as intentionally unused."""
    line = source.parents[statement]
    comments = list(comments_in(alias))
    if isinstance(statement.lpar, cst.LeftParen):
        space = statement.lpar.whitespace_after
        comments += comments_in(space.first_line) if isinstance(space, cst.ParenthesizedWhitespace) else []
    if isinstance(line, cst.SimpleStatementLine):
        comments += comments_in(line.trailing_whitespace)
    return any(UNUSED.search(comment) for comment in comments)
