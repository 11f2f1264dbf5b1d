"""UP113: members and results of the old modules that the new ones do not have."""

from __future__ import annotations

import libcst as cst

from ..analysis.placement import line_of
from ..changes import Changes
from ..context import Context
from ..upstream.made_modules import calls_of, is_module
from ..upstream.names import OldNames
from ..upstream.old_api import MAKE_MODULES, MEMBERS


def check_members(context: Context, changes: Changes, names: OldNames) -> None:
    """Mark them on what certainly is a module."""
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


def is_asked_for_weights(arg: cst.Arg) -> bool:
    return (
        arg.keyword is not None
        and arg.keyword.value == "return_attention_weights"
        and not (isinstance(arg.value, cst.Name) and arg.value.value == "False")
    )
