"""UP113: members and results of the old modules that the new ones do not have, and fields that are set afterwards."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import dotted
from ..analysis.placement import line_of
from ..analysis.roles import leftmost
from ..changes import Changes
from ..context import Context
from ..removed_api import PATTERN
from ..upstream.made_modules import calls_of, is_module
from ..upstream.names import OldNames
from ..upstream.old_api import MAKE_MODULES, MEMBERS

FROZEN = "a pattern cannot be changed afterwards: set sparse_config to a new SparsePatternConfig"


def check_members(context: Context, changes: Changes, names: OldNames) -> None:
    """Mark them on what certainly is a module or a pattern."""
    check_fields(context, changes, names)
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


def check_fields(context: Context, changes: Changes, names: OldNames) -> None:
    """`pattern.sparsity_ratio = 0.3`, `module.sparse_config.sparsity_ratio = 0.3`, `setattr(pattern, ...)`."""
    calls = list(calls_of(context, names))
    patterns = {call for use, call in calls if use.name == PATTERN}
    modules = {call for use, call in calls if use.name in MAKE_MODULES}

    def is_pattern(node: cst.BaseExpression) -> bool:
        owner = node.value if isinstance(node, cst.Attribute) and node.attr.value == "sparse_config" else None
        if owner is not None and is_module(context, owner, modules):
            return True
        root = leftmost(node)
        scope = context.source.scope_of.get(root)
        kind = context.origins.kind(node, scope) if scope is not None else None
        return kind == "pattern" or is_module(context, node, patterns)

    parents = context.source.parents
    for node in context.source.attributes:
        parent = parents[node]
        is_set = isinstance(parent, cst.AssignTarget) or (
            isinstance(parent, cst.AnnAssign | cst.AugAssign) and parent.target is node
        )
        if is_set and is_pattern(node.value):
            changes.leave(node, "UP113", "", FROZEN)
    for call in context.source.calls:
        if dotted(call.func) == "setattr" and call.args and is_pattern(call.args[0].value):
            changes.leave(call, "UP113", "", FROZEN)


def is_marked(context: Context, node: cst.CSTNode) -> bool:
    """Whether the group HIER has marked the same already."""
    line = line_of(node, context.source.parents)
    above = getattr(line, "leading_lines", ())
    return any(context.source.marks.get(each, (0, ""))[1] == "HIER102" for each in above)


def is_asked_for_weights(arg: cst.Arg) -> bool:
    return (
        arg.keyword is not None
        and arg.keyword.value == "return_attention_weights"
        and not (isinstance(arg.value, cst.Name) and arg.value.value == "False")
    )
