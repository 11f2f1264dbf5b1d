"""Refuses, before parsing, nesting that would overflow the native parser or keep it busy for hours."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings

DEEPEST = 100  # nested brackets; the parser's recursion is limited, and real code is never that deep
DEEPEST_TREE = 500  # nested expressions and blocks; `1 + 1 + 1` is two sums, one inside the other
OTHERS = bytes(byte for byte in range(256) if byte not in b"()[]{}")


TOO_MANY_BRACKETS = f"nested too deeply: more than {DEEPEST} nested brackets"
TOO_DEEP = f"nested too deeply: more than {DEEPEST_TREE} operators, calls, attributes or blocks, nested or in one chain"
MOST_STRINGS = 500  # adjacent string literals; the parser nests them in pairs
TOO_MANY_STRINGS = (
    "line {line}: more than {most} strings in a row are concatenated implicitly: concatenate fewer at a time"
)


def too_deep(source: bytes) -> str | None:
    """Why brackets, chains of operators, calls or attributes, or `elif` are nested too deeply; None if they are not."""
    depth = deepest = 0
    for byte in source.translate(None, OTHERS):  # an upper bound: brackets in strings count too
        depth = depth + 1 if byte in b"([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        return TOO_MANY_BRACKETS
    return TOO_DEEP if tree_is_too_deep(source) else None


def tree_is_too_deep(source: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            level: list[ast.AST] = [ast.parse(source)]
    except (RecursionError, MemoryError):
        return True
    except (SyntaxError, ValueError):
        return False  # newer syntax than the running Python, or not Python: left to libcst
    for _ in range(DEEPEST_TREE):
        if any(isinstance(node, ast.BoolOp) and len(node.values) > DEEPEST_TREE for node in level):
            return True  # flat in this tree, nested in that of libcst
        level = [
            child
            for node in level
            for value in node.__dict__.values()
            for child in (value if type(value) is list else (value,))
            if isinstance(child, ast.AST) and child._fields
        ]
        if not level:
            return False
    return True


def joined_strings(source: bytes) -> str | None:
    """The message about too many adjacent string literals for the parser; None if that is not why it failed."""
    count = inside = 0
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            kind = tokenize.tok_name[token.type]
            inside += (kind == "FSTRING_START") - (kind == "FSTRING_END")
            if kind in ("NL", "COMMENT") or inside:
                continue
            count = count + 1 if kind in ("STRING", "FSTRING_END") else 0
            if count > MOST_STRINGS:
                return TOO_MANY_STRINGS.format(line=token.start[0], most=MOST_STRINGS)
    except (tokenize.TokenError, SyntaxError):
        pass
    return None
