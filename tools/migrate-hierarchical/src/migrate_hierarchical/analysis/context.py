"""Where an expression stands: in an annotation, in an f-string, in which statement."""

from __future__ import annotations

import re
from collections.abc import Callable

import libcst as cst

from ..names import TYPES
from .binding import Scope, dotted
from .scopes import LINES
from .uses import Use

Parents = dict[cst.CSTNode, cst.CSTNode]
TYPE_PARTS = (
    cst.Subscript,
    cst.SubscriptElement,
    cst.Index,
    cst.BinaryOperation,
    cst.Tuple,
    cst.List,
    cst.Element,
    cst.SimpleString,
    cst.ConcatenatedString,
)


def line_of(node: cst.CSTNode, parents: Parents) -> cst.CSTNode:
    """The nearest statement that comments can stand above; the definition for its first decorator."""
    current = node
    while type(current) not in LINES:
        current = parents[current]
    if isinstance(current, cst.Decorator):
        owner = parents[current]
        if isinstance(owner, cst.FunctionDef | cst.ClassDef) and owner.decorators[0] is current:
            return owner
    return current


def in_annotation(node: cst.CSTNode, parents: Parents) -> bool:
    """Whether an expression is, or is a part of, a type: annotation, alias of a type, type[...] and the like."""
    current, parent = node, parents[node]
    subscripted = False
    while isinstance(parent, TYPE_PARTS):
        if isinstance(parent, cst.Subscript) and parent.value is not current:
            subscripted = True
        current, parent = parent, parents[parent]
    if isinstance(parent, cst.Annotation | cst.TypeAlias | cst.TypeVar):
        return True
    if isinstance(parent, cst.AnnAssign) and dotted(parent.annotation.annotation) in (
        "TypeAlias",
        "typing.TypeAlias",
        "typing_extensions.TypeAlias",
    ):
        return True
    return subscripted and not isinstance(parent, cst.Attribute)


def in_type_call(node: cst.CSTNode, parents: Parents, first_of_cast: bool = False) -> bool:
    """Whether it is the type given to isinstance, issubclass, cast or TypeVar(bound=...)."""
    _current, parent = node, parents[node]
    while isinstance(parent, TYPE_PARTS):
        _current, parent = parent, parents[parent]
    if not isinstance(parent, cst.Arg):
        return False
    call = parents[parent]
    if not isinstance(call, cst.Call):
        return False
    function = (dotted(call.func) or "").split(".")[-1]
    position = next(i for i, arg in enumerate(call.args) if arg is parent)
    if parent.keyword is not None:
        return function == "TypeVar" and parent.keyword.value == "bound"
    if function in ("isinstance", "issubclass"):
        return position == 1 and not first_of_cast
    return (function == "cast" and position == 0) or (function == "TypeVar" and position > 0)


def fstring_quotes(node: cst.CSTNode, parents: Parents) -> str | None:
    """The quotes of the f-strings around an expression; None outside of them."""
    quotes = ""
    current: cst.CSTNode | None = node
    while current is not None and type(current) not in LINES:
        if type(current).__name__ in ("FormattedString", "TemplatedString"):
            quotes += current.start[-1]  # type: ignore[attr-defined]
        current = parents.get(current)
    return quotes or None


def is_docstring(node: cst.CSTNode, parents: Parents) -> bool:
    """Whether a string is a statement of its own."""
    parent = parents[node]
    while isinstance(parent, cst.ConcatenatedString):
        parent = parents[parent]
    return isinstance(parent, cst.Expr)


def annotation_name_edit(
    node: cst.SimpleString, scope: Scope, find: Callable[[str, Scope], Use | None]
) -> tuple[str, list[tuple[Use, str]]]:
    """The source of a string with the removed types renamed, and the uses that were."""
    names: list[tuple[Use, str]] = []

    def new(match: re.Match[str]) -> str:
        use = find(match.group(), scope)
        if use is None or use.name not in TYPES:
            return match.group()
        names.append((use, TYPES[use.name]))
        return TYPES[use.name]

    # a name of its own: neither an attribute nor a part of a longer name
    source = re.sub(r"(?<![\w.])[A-Za-z_]\w*(?!\w)", new, node.value)
    return source, names


def in_all(node: cst.CSTNode, parents: Parents) -> bool:
    """Whether a string is an entry of __all__."""
    current = parents.get(node)
    while current is not None and not isinstance(current, cst.SimpleStatementLine):
        if isinstance(current, cst.Assign):
            return any(dotted(assigned.target) == "__all__" for assigned in current.targets)
        if isinstance(current, cst.AugAssign | cst.AnnAssign):
            return dotted(current.target) == "__all__"
        if isinstance(current, cst.Call):
            return (dotted(current.func) or "").startswith("__all__.")
        current = parents.get(current)
    return False
