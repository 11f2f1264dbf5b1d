"""Finds what certainly is a module of the package: a call that makes one, or a name that is set to nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from ..analysis.binding import dotted
from ..analysis.roles import leftmost
from ..analysis.uses import Use
from ..context import Context
from .names import OldNames


def calls_of(context: Context, names: OldNames) -> Iterator[tuple[Use, cst.Call]]:
    """The calls of upstream's names."""
    for use in names:
        parent = context.source.parents[use.node]
        if isinstance(parent, cst.Call) and parent.func is use.node and use.agrees:
            yield use, parent


def is_module(context: Context, node: cst.BaseExpression, made: set[cst.Call]) -> bool:
    """Whether an expression is what one of the calls has made."""
    if isinstance(node, cst.Call):
        return node in made
    root, path = leftmost(node), dotted(node)
    if path is None or root not in context.source.scope_of:
        return False
    if isinstance(node, cst.Name):
        bindings = context.source.scope_of[root].lookup(path)
        return bool(bindings) and all(each.kind == "value" and each.value in made for each in bindings)
    values = [value for value, _ in context.source.members.get(path, ())]
    return bool(values) and all(value in made for value in values)
