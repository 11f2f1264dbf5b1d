"""Marks members and results of the old classes that the new ones do not have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import libcst as cst

from ..analysis.binding import dotted
from ..analysis.placement import line_of
from ..analysis.roles import leftmost
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..removed_api import FACTORY
from .calls import OldCall, is_multihead
from .names import OldNames
from .old_api import CREATE_MULTIHEAD, MAKE_MODULES, MEMBERS, MULTIHEAD

SEVENTH = 7


def check_members(context: Context, changes: Changes, names: OldNames) -> None:
    """Mark them on what certainly is a module: a call that makes one, or a name that nothing else is assigned to."""
    check_seventh(context, changes, set(multiheads_made(context, changes, names)))
    made = {call for use, call in calls_of(context, names) if use.name in MAKE_MODULES}
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


def check_seventh(context: Context, changes: Changes, made: set[cst.Call]) -> None:
    """Mark calls of multihead modules that pass by position what was is_causal."""
    for call in context.source.calls if made else ():
        by_position = list(takewhile(lambda arg: arg.keyword is None and not arg.star, call.args))
        if len(by_position) >= SEVENTH and is_module(context, call.func, made):
            changes.leave(
                call,
                "UP106",
                "",
                "the seventh argument was is_causal and is average_attn_weights now: pass it by name",
            )


def calls_of(context: Context, names: OldNames) -> Iterator[tuple[Use, cst.Call]]:
    """The calls of upstream's names."""
    for use in names:
        parent = context.source.parents[use.node]
        if isinstance(parent, cst.Call) and parent.func is use.node and use.agrees:
            yield use, parent


def multiheads_made(context: Context, changes: Changes, names: OldNames) -> Iterator[cst.Call]:
    """The calls that make a multihead module."""
    for use, call in calls_of(context, names):
        if use.name in (MULTIHEAD, CREATE_MULTIHEAD) or (
            use.name == FACTORY and is_multihead(OldCall(context, changes, use, call, False))
        ):
            yield call


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
