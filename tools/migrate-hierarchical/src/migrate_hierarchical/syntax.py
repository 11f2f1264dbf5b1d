"""Parses files that are only read with Python's own parser; a size limit bounds its time."""

from __future__ import annotations

import ast
import sys
import warnings

from .limits import PARSED_BYTES, PARSED_OPERATORS

OPERATORS = (".", "(", "[", "+", "-", "*", "/", "%", "@", "&", "|", "^", "<", ">", "elif")


def parse(source: str | bytes) -> ast.Module | None:
    """The tree; None if the text is not valid for the running Python, too large or too deep."""
    if len(source) > PARSED_BYTES or (sys.version_info < (3, 11) and may_overflow(source)):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def may_overflow(source: str | bytes) -> bool:
    text = source if isinstance(source, str) else source.decode("latin-1")
    return sum(map(text.count, OPERATORS)) > PARSED_OPERATORS
