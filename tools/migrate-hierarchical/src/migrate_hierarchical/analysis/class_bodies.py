"""Names that a class body reads before binding them, which refer to the enclosing scope until then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import libcst as cst

from .binding import WORD, Binding, Scope


class Source(Protocol):
    """The part of SourceIndex that is needed here."""

    names: list[cst.Name]
    strings: list[cst.SimpleString]
    parents: dict[cst.CSTNode, cst.CSTNode]
    scope_of: dict[cst.CSTNode, Scope]


def look_before_binding(source: Source) -> None:
    """Give each such read a scope of its own, in which the name has the bindings that are visible there."""
    for index, node in enumerate(source.names):
        scope = source.scope_of[node]
        if scope.kind == "class" and node.value in scope.bindings:
            meant = meanings(source, node, index, scope)
            if meant is not None:
                source.scope_of[node] = with_meanings(scope, {node.value: meant})
    for string in source.strings:
        scope = source.scope_of[string]
        if scope.kind == "class":
            both = {}
            for word in set(WORD.findall(string.raw_value)) & scope.bindings.keys():
                own, outside = scope.bindings[word], around(scope).lookup(word)
                if outside and any(each.kind not in ("class", "import") for each in own):
                    both[word] = [
                        *own,
                        *outside,
                    ]  # typing.get_type_hints sees the outer scope, type checkers do not
            if both:
                source.scope_of[string] = with_meanings(scope, both)


def meanings(source: Source, node: cst.Name, index: int, scope: Scope) -> list[Binding] | None:
    """The bindings that a read may see; None if these are those of the class, as usual."""
    outside = around(scope).lookup(node.value)
    if not outside or scope.elsewhere.get(node.value):
        return None
    above = [each for each in scope.bindings[node.value] if each.at <= index and not each.is_declaration]
    held = set(held_by(source, node))
    bodies = (cst.For, cst.ExceptHandler)
    above = [
        each
        for each in above
        if each.node not in held or (isinstance(each.node, bodies) and each.node.body in held)
    ]
    if any(block_of(source, each) in held for each in above):
        return None
    return [*above, *outside]


def held_by(source: Source, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The ancestors of a node, innermost first."""
    parent = source.parents.get(node)
    while parent is not None:
        yield parent
        parent = source.parents.get(parent)


def block_of(source: Source, binding: Binding) -> cst.CSTNode | None:
    """The block in which a name certainly has its value after a binding."""
    if isinstance(binding.node, cst.For | cst.ExceptHandler):
        return binding.node.body
    for each in held_by(source, binding.node):
        if isinstance(each, cst.IfExp | cst.BooleanOperation) or isinstance(binding.node, cst.Del):
            return None
        if isinstance(each, cst.BaseSuite):
            return each
    return None


def around(scope: Scope) -> Scope:
    """The nearest enclosing scope that a class body can see."""
    return next(each for each in scope.ancestors() if each is not scope and each.kind != "class")


def with_meanings(scope: Scope, meant: dict[str, list[Binding]]) -> Scope:
    """A copy of a scope with other bindings for some names."""
    return Scope(scope.kind, scope.parent, scope.node, {**scope.bindings, **meant}, scope.elsewhere)
