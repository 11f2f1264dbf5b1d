"""Locates an expression: its statement, and the f-strings around it."""

from __future__ import annotations

import libcst as cst

from .source_index import LINES

Parents = dict[cst.CSTNode, cst.CSTNode]


def line_of(node: cst.CSTNode, parents: Parents) -> cst.CSTNode:
    """The nearest statement above which comments can be added; for a first decorator, its definition."""
    current = node
    while type(current) not in LINES:
        current = parents[current]
    if isinstance(current, cst.Decorator):
        owner = parents[current]
        if isinstance(owner, cst.FunctionDef | cst.ClassDef) and owner.decorators[0] is current:
            return owner
    return current


def fstring_quotes(node: cst.CSTNode, parents: Parents) -> str | None:
    """The quotes of the f-strings around an expression; None outside of them."""
    quotes = ""
    current: cst.CSTNode | None = node
    while current is not None and type(current) not in LINES:
        if type(current).__name__ in ("FormattedString", "TemplatedString"):
            quotes += current.start[-1]  # type: ignore[attr-defined]
        current = parents.get(current)
    return quotes or None
