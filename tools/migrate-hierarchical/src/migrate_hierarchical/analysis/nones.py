"""Decides whether an expression can be None, which meant the default configuration and now means another density."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import libcst as cst

from ..density import LEVELS
from ..limits import VALUE_DEPTH
from .arguments import is_none, string_value
from .binding import Binding, Scope, dotted, last_part
from .source_index import SourceIndex


class Nones:
    def __init__(
        self, source: SourceIndex, class_body: Callable[[cst.BaseExpression, Scope], Scope | None]
    ) -> None:
        self.source, self.class_body = source, class_body
        self.known: dict[Binding | str, dict[cst.CSTNode, list[int]]] = {}
        self.positions: dict[cst.CSTNode, dict[cst.CSTNode, int]] = {}

    def may_be_none(self, node: cst.BaseExpression, scope: Scope, depth: int = 0) -> bool:
        """Whether an expression is None on any path that the file shows."""
        if depth > VALUE_DEPTH or is_none(node):
            return is_none(node)
        if isinstance(node, cst.NamedExpr):
            return self.may_be_none(node.value, scope, depth + 1)
        if isinstance(node, cst.BooleanOperation):
            sides = [node.right] if isinstance(node.operator, cst.Or) else [node.left, node.right]
            return any(self.may_be_none(side, scope, depth + 1) for side in sides)
        if isinstance(node, cst.IfExp):
            ways = [
                way
                for way, if_none in ((node.body, False), (node.orelse, True))
                if not excludes_none(node.test, dotted(way), if_none)
            ]
            return any(self.may_be_none(way, scope, depth + 1) for way in ways)
        if isinstance(node, cst.Call):
            return self.call_may_be_none(node, scope, depth)
        if isinstance(node, cst.Name | cst.Attribute):
            last = self.last_value(node)
            if last is not None:
                return self.may_be_none(last, scope, depth + 1)
            if self.is_filled_before(node):
                return False
        if isinstance(node, cst.Attribute):
            values = self.source.members.get(dotted(node) or "", [])
            owner = self.class_body(node.value, scope)
            bindings = owner.bindings.get(node.attr.value, []) if owner is not None else []
            return any(self.may_be_none(value, where, depth + 1) for value, where in values) or any(
                self.binding_may_be_none(each, depth) for each in bindings
            )
        if isinstance(node, cst.Name):
            return any(self.binding_may_be_none(each, depth) for each in scope.lookup(node.value))
        return False

    def binding_may_be_none(self, binding: Binding, depth: int) -> bool:
        if isinstance(binding.node, cst.Param):
            if binding.node.default is not None:
                return self.may_be_none(binding.node.default, binding.scope, depth + 1)
            return binding.annotation is not None and names_none(binding.annotation)
        if binding.kind == "loop" and isinstance(binding.value, cst.List | cst.Tuple | cst.Set):
            return any(is_none(element.value) for element in binding.value.elements)
        if binding.value is None or binding.kind != "value":
            return False
        return self.may_be_none(binding.value, binding.scope, depth + 1)

    def call_may_be_none(self, node: cst.Call, scope: Scope, depth: int) -> bool:
        if isinstance(node.func, cst.Attribute):
            if node.func.attr.value != "get" or not node.args:
                return False
            if string_value(node.args[0].value) in LEVELS:
                return False
            return len(node.args) == 1 or self.may_be_none(node.args[1].value, scope, depth + 1)
        bindings = scope.lookup(node.func.value) if isinstance(node.func, cst.Name) else []
        for binding in bindings:
            if isinstance(binding.node, cst.FunctionDef):
                returns = binding.node.returns
                if returns is not None and names_none(returns.annotation):
                    return True
                given = self.source.given.get(self.source.opens[binding.node.body], [])
                if any(self.may_be_none(value, where, depth + 1) for value, where in given):
                    return True
        return False

    # ---- what certainly ran before

    def last_value(self, node: cst.Name | cst.Attribute) -> cst.BaseExpression | None:
        """The value from the last assignment to a name that certainly ran before a place; None if that is unclear."""
        statement = self.last_setter(node)
        if isinstance(statement, cst.SimpleStatementLine):
            values = [value for value in map(value_of(dotted(node)), statement.body) if value is not None]
            return values[-1] if values else None
        return None

    def is_filled_before(self, node: cst.Name | cst.Attribute) -> bool:
        """Whether `if x is None: x = ...` precedes a place."""
        statement = self.last_setter(node)
        if not isinstance(statement, cst.If) or not excludes_none(statement.test, dotted(node), True):
            return False
        body = statement.body.body[-1:]
        values = [value_of(dotted(node))(small) for line in body for small in getattr(line, "body", ())]
        values += [value_of(dotted(node))(small) for small in body]
        return any(isinstance(value, cst.Call) for value in values) and statement.orelse is None

    def last_setter(self, node: cst.Name | cst.Attribute) -> Any:
        """The nearest statement above a place, in its block or an outer one, that sets a name."""
        child: cst.CSTNode = node
        parent: Any = self.source.parents.get(child)
        places = self.places(node)
        while places and parent is not None:
            if parent in places:
                position = bisect_left(places[parent], self.position(parent, child))
                if position:
                    return parent.body[places[parent][position - 1]]
            if isinstance(parent, cst.FunctionDef | cst.Lambda | cst.ClassDef | cst.For | cst.While):
                return None
            child, parent = parent, self.source.parents.get(parent)
        return None

    def places(self, node: cst.Name | cst.Attribute) -> dict[cst.CSTNode, list[int]]:
        """For every block, the statements in it that set a name, also in blocks of their own."""
        scope = self.source.scope_of.get(node)
        name = dotted(node)
        if scope is None or name is None:
            return {}
        bindings = scope.lookup(node.value) if isinstance(node, cst.Name) else []
        key = bindings[0] if bindings else name
        if key not in self.known:
            setters = [each.node for each in bindings if not isinstance(each.node, cst.Param)]
            if not bindings:
                setters = [self.source.parents[value] for value, _ in self.source.members.get(name, [])]
            found: dict[cst.CSTNode, set[int]] = {}
            for setter in setters:
                child, parent = setter, self.source.parents.get(setter)
                while parent is not None:
                    if isinstance(parent, cst.IndentedBlock | cst.Module):
                        found.setdefault(parent, set()).add(self.position(parent, child))
                    if isinstance(parent, cst.FunctionDef | cst.ClassDef | cst.Lambda):
                        break
                    child, parent = parent, self.source.parents.get(parent)
            self.known[key] = {block: sorted(indices) for block, indices in found.items()}
        return self.known[key]

    def position(self, block: Any, statement: cst.CSTNode) -> int:
        if block not in self.positions:
            body = block.body
            self.positions[block] = {each: index for index, each in enumerate(body)}
        return self.positions[block].get(statement, 0)


def value_of(name: str | None) -> Callable[[cst.CSTNode], cst.BaseExpression | None]:
    def of(small: cst.CSTNode) -> cst.BaseExpression | None:
        if isinstance(small, cst.Assign) and any(dotted(each.target) == name for each in small.targets):
            return small.value
        return small.value if isinstance(small, cst.AnnAssign) and dotted(small.target) == name else None

    return of


def excludes_none(test: cst.BaseExpression, name: str | None, if_false: bool) -> bool:
    """Whether a name is not None where a test is true, or where it is false."""
    if name is None:
        return False
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        return excludes_none(test.expression, name, not if_false)
    if isinstance(test, cst.Comparison) and len(test.comparisons) == 1 and dotted(test.left) == name:
        target = test.comparisons[0]
        if not is_none(target.comparator):
            return False
        return isinstance(target.operator, cst.Is if if_false else cst.IsNot)
    return not if_false and dotted(test) == name


def names_none(annotation: cst.BaseExpression) -> bool:
    """Whether an annotation allows None: `X | None`, `Optional[X]`, also as a string."""
    if isinstance(annotation, cst.SimpleString):
        text = annotation.evaluated_value
        return isinstance(text, str) and ("None" in text or "Optional[" in text)
    if isinstance(annotation, cst.BinaryOperation):
        return names_none(annotation.left) or names_none(annotation.right)
    if isinstance(annotation, cst.Subscript):
        base = last_part(annotation.value)
        parts = [each.slice.value for each in annotation.slice if isinstance(each.slice, cst.Index)]
        return base == "Optional" or (base == "Union" and any(map(names_none, parts)))
    return is_none(annotation)
