"""Tests that distinguish a removed class from its successor, which become the same class after the migration."""

from __future__ import annotations

import libcst as cst

from ..removed_api import NEW_TYPES
from .binding import dotted
from .roles import CLASS, Roles
from .source_index import SourceIndex
from .uses import Resolver, Use


class Branches:
    """The type tests of a file (`isinstance`, `singledispatch`) for a successor of a removed class."""

    def __init__(self, module: cst.Module, source: SourceIndex, resolver: Resolver, roles: Roles) -> None:
        self.module, self.source, self.roles, self.parents = module, source, roles, source.parents
        self.asked: dict[tuple[str, object], list[cst.CSTNode]] = {}
        for use in resolver:
            question = self.question(use) if use.name in NEW_TYPES.values() else None
            if question is not None:
                key, place = question
                self.asked.setdefault((use.name, key), []).append(place)

    def are_told_apart(self, use: Use) -> bool:
        """Whether one branch tests for a removed class and another branch for its successor."""
        question = self.question(use)
        if question is None:
            return False
        key, place = question
        return any(other is not place for other in self.asked.get((NEW_TYPES[use.name], key), ()))

    def question(self, use: Use) -> tuple[object, cst.CSTNode] | None:
        """The subject of a test and the whole test; `isinstance(x, (A, B)) or isinstance(x, C)` is one test."""
        node: cst.CSTNode | None = use.node
        while node is not None and not isinstance(node, cst.Call | cst.FunctionDef | cst.BaseStatement):
            node = self.parents.get(node)
        if isinstance(node, cst.FunctionDef):
            registers = [dotted(each.decorator) or "" for each in node.decorators]
            found = next((each for each in registers if each.endswith(".register")), None)
            return None if found is None else (found, node)
        if not isinstance(node, cst.Call) or self.roles.of(use.node) != CLASS:
            return None
        subject = self.module.code_for_node(node.args[0].value)
        key = (self.source.scope_of[node], subject)
        while isinstance(outer := self.parents[node], cst.BooleanOperation) and isinstance(
            outer.operator, cst.Or
        ):
            node = outer
        return key, node
