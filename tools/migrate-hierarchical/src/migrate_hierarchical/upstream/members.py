"""Marks members and results of the old classes that the new ones do not have."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from ..analysis.binding import dotted
from ..analysis.placement import line_of
from ..analysis.roles import leftmost
from ..changes import Changes
from ..context import Context
from .names import OldNames
from .old_api import MAKE_MODULES, MEMBERS


def check_members(context: Context, changes: Changes, names: OldNames) -> None:
    """Mark them on what certainly is a module: a call that makes one, or a name that nothing else is assigned to."""
    made = set(modules_made(context, names))
    if not made:
        return
    for node in context.source.attributes:
        member = node.attr.value
        if member in MEMBERS and is_module(context, node.value, made) and not is_marked(context, node):
            changes.leave(node, "UP113", "", f"the module has no {member}: {MEMBERS[member]}")
    for call in context.source.calls:
        if any(is_asked_for_weights(arg) for arg in call.args) and is_module(context, call.func, made):
            changes.leave(
                call, "UP113", "", "return_attention_weights gives the weights, not a dictionary of indices"
            )


def is_marked(context: Context, node: cst.CSTNode) -> bool:
    """Whether the group HIER has marked the same already."""
    line = line_of(node, context.source.parents)
    above = getattr(line, "leading_lines", ())
    return any(context.source.marks.get(each, (0, ""))[1] == "HIER102" for each in above)


def modules_made(context: Context, names: OldNames) -> Iterator[cst.Call]:
    """The calls that make a module."""
    for use in names:
        parent = context.source.parents[use.node]
        if (
            use.name in MAKE_MODULES
            and isinstance(parent, cst.Call)
            and parent.func is use.node
            and use.agrees
        ):
            yield parent


def is_module(context: Context, node: cst.BaseExpression, made: set[cst.Call]) -> bool:
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


def is_asked_for_weights(arg: cst.Arg) -> bool:
    return (
        arg.keyword is not None
        and arg.keyword.value == "return_attention_weights"
        and not (isinstance(arg.value, cst.Name) and arg.value.value == "False")
    )
