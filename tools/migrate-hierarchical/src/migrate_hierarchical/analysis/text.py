"""Evaluates string expressions as far as the file itself determines them."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from ..limits import TEXT_DEPTH
from .arguments import string_value
from .binding import Scope
from .source_index import SourceIndex

GAP = "\0"  # replaces an unknown part


def text_of(node: cst.BaseExpression, source: SourceIndex, scope: Scope, depth: int = 0) -> str | None:
    """The text of a string, a sum, an f-string, a join or a name for one, GAP for unknown parts; None if not a text."""
    if depth > TEXT_DEPTH:
        return None
    if isinstance(node, cst.SimpleString):
        text = string_value(node)
        if text is not None:
            return text
        value = node.evaluated_value
        return value if isinstance(value, str) else value.decode("utf-8", "replace")
    if isinstance(node, cst.ConcatenatedString):
        return joined([node.left, node.right], source, scope, depth)
    if isinstance(node, cst.FormattedString):
        return "".join(
            part.value.replace("{{", "{").replace("}}", "}")
            if isinstance(part, cst.FormattedStringText)
            else text_of(part.expression, source, scope, depth + 1) or GAP
            for part in node.parts
            if isinstance(part, cst.FormattedStringText | cst.FormattedStringExpression)
        )
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Add):
        return joined([node.left, node.right], source, scope, depth)
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and len(node.args) == 1:
        between = text_of(node.func.value, source, scope, depth + 1)
        parts = node.args[0].value
        if node.func.attr.value == "join" and between is not None and isinstance(parts, cst.List | cst.Tuple):
            texts = [text_of(each.value, source, scope, depth + 1) or GAP for each in parts.elements]
            return between.join(texts)
    if isinstance(node, cst.Name):
        values = [binding.value for binding in scope.lookup(node.value) if binding.kind == "value"]
        if len(values) == len(scope.lookup(node.value)) == 1 and values[0] is not None:
            return text_of(values[0], source, scope, depth + 1)
    return None


def joined(parts: Sequence[cst.BaseExpression], source: SourceIndex, scope: Scope, depth: int) -> str | None:
    texts = [text_of(part, source, scope, depth + 1) for part in parts]
    if all(text is None for text in texts):
        return None
    return "".join(text or GAP for text in texts)
