"""A removed class and its successor, asked for side by side: as one class, they can no longer be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from ..analysis.binding import dotted
from ..analysis.roles import CLASS
from ..names import TYPES

if TYPE_CHECKING:
    from ..analysis.uses import Use
    from ..plan import Planner


class Branches:
    """The questions of a file after the classes that take the place of removed ones."""

    def __init__(self, planner: Planner) -> None:
        self.planner, self.parents = planner, planner.walk.parents
        self.asked: dict[tuple[str, object], list[cst.CSTNode]] = {}
        for use in planner.resolver:
            question = self.question(use) if use.name in TYPES.values() else None
            if question is not None:
                key, place = question
                self.asked.setdefault((use.name, key), []).append(place)

    def are_told_apart(self, use: Use) -> bool:
        """Whether a removed class is asked for in one branch, and its successor in another one."""
        question = self.question(use)
        if question is None:
            return False
        key, place = question
        return any(other is not place for other in self.asked.get((TYPES[use.name], key), ()))

    def question(self, use: Use) -> tuple[object, cst.CSTNode] | None:
        """What is asked about, and the whole question: `isinstance(x, (A, B)) or isinstance(x, C)` is one."""
        node: cst.CSTNode | None = use.node
        while node is not None and not isinstance(node, cst.Call | cst.FunctionDef | cst.BaseStatement):
            node = self.parents.get(node)
        if isinstance(node, cst.FunctionDef):
            registers = [dotted(each.decorator) or "" for each in node.decorators]
            found = next((each for each in registers if each.endswith(".register")), None)
            return None if found is None else (found, node)
        if not isinstance(node, cst.Call) or self.planner.roles.of(use.node) != CLASS:
            return None
        subject = self.planner.module.code_for_node(node.args[0].value)
        key = (self.planner.walk.scope_of[node], subject)
        while isinstance(outer := self.parents[node], cst.BooleanOperation) and isinstance(
            outer.operator, cst.Or
        ):
            node = outer
        return key, node


def repeats(planner: Planner, use: Use) -> cst.Tuple | None:
    """The tuple of classes around a removed one that holds its successor too."""
    container = planner.walk.parents[planner.walk.parents[use.node]]
    if not isinstance(container, cst.Tuple):
        return None
    others = [planner.resolver.by_node.get(each.value) for each in container.elements]
    names = [TYPES.get(other.name, other.name) for other in others if other is not None]
    return container if names.count(TYPES[use.name]) > 1 else None


def without_repeats(classes: cst.Tuple) -> cst.BaseExpression:
    """A tuple of classes with each of them once; the class itself where one is left."""
    kept: dict[str, cst.BaseElement] = {}
    for element in classes.elements:
        kept.setdefault(cst.Module([]).code_for_node(element.value), element)
    elements = list(kept.values())
    if len(elements) == 1:
        return elements[0].value
    elements[-1] = elements[-1].with_changes(comma=classes.elements[-1].comma)
    return classes.with_changes(elements=elements)
