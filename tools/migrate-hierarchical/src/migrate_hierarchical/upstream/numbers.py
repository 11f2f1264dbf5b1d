"""The numbers that an expression may be: literals, arithmetic of them, and names that the file sets to them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import islice

import libcst as cst

from ..analysis.binding import Binding
from ..context import Context
from .calls import number

DEPTH = 8  # of names and operations that are followed
MOST = 16  # numbers of one expression
OPERATORS: dict[type[cst.BaseBinaryOp], Callable[[float, float], float]] = {
    cst.Add: operator.add,
    cst.Subtract: operator.sub,
    cst.Multiply: operator.mul,
    cst.Divide: operator.truediv,
}


class Numbers:
    """Those of one argument, and of the names that it leads to; each name is followed once."""

    def __init__(self, context: Context) -> None:
        self.source = context.source
        self.followed: dict[Binding, list[float]] = {}

    def of(self, node: cst.BaseExpression, depth: int = 0) -> list[float]:
        """What can be seen of them; nothing that another file, a caller or a command line gives."""
        return list(islice(dict.fromkeys(self.each(node, depth)), MOST)) if depth < DEPTH else []

    def each(self, node: cst.BaseExpression, depth: int) -> Iterator[float]:
        value = number(node)
        if value is not None:
            yield value
        elif isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Minus):
            yield from (-each for each in self.of(node.expression, depth + 1))
        elif isinstance(node, cst.BinaryOperation) and type(node.operator) in OPERATORS:
            compute = OPERATORS[type(node.operator)]
            right = self.of(node.right, depth + 1)
            if isinstance(node.operator, cst.Divide):
                right = [each for each in right if each]
            yield from (compute(left, each) for left in self.of(node.left, depth + 1) for each in right)
        elif isinstance(node, cst.IfExp):
            yield from (*self.of(node.body, depth + 1), *self.of(node.orelse, depth + 1))
        elif isinstance(node, cst.Name) and node in self.source.scope_of:
            for binding in self.source.scope_of[node].lookup(node.value):
                yield from self.of_binding(binding, depth)

    def of_binding(self, binding: Binding, depth: int) -> list[float]:
        if binding.kind != "value" or binding.value is None:
            return []
        if binding not in self.followed:
            self.followed[binding] = []  # nothing of a value that is computed from itself
            self.followed[binding] = self.of(binding.value, depth + 1)
        return self.followed[binding]
