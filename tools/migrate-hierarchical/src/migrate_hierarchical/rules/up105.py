"""UP105: arguments that may be anything, and calls that cannot be seen."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import dotted, last_part
from ..analysis.roles import CLASS, TYPE
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..removed_api import FACTORY, GET_PRESET, PATTERN
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import (
    ADAPTIVE,
    BASE,
    CREATE_ADAPTIVE,
    CREATE_MULTIHEAD,
    DISTRIBUTED_CONFIG,
    MULTIHEAD,
    OLD_PARAMETERS,
    RENAMED,
)


@edits(
    BASE,
    MULTIHEAD,
    ADAPTIVE,
    FACTORY,
    GET_PRESET,
    CREATE_MULTIHEAD,
    CREATE_ADAPTIVE,
    DISTRIBUTED_CONFIG,
    PATTERN,
)
def hidden_arguments(call: OldCall) -> None:
    if call.problem:
        call.leave("UP105", call.problem)
    elif call.stars:
        arg = call.stars[0]
        call.leave("UP105", f"{arg.star}{call.code(arg.value)}")


def check_value(context: Context, changes: Changes, use: Use, parent: cst.CSTNode) -> None:
    """A name that is not called where it stands."""
    how = ""
    if use.name in RENAMED and context.roles.of(use.node) not in (TYPE, CLASS):
        how = "used as a value"
    elif use.name in OLD_PARAMETERS and is_called_elsewhere(context, parent):
        how = "called elsewhere"
    elif use.name in OLD_PARAMETERS and is_called_by_another_name(context, parent, use):
        how = "called by another name"
    if how:
        changes.leave(use.node, "UP105", f"{use.name} is {how}")


def is_called_elsewhere(context: Context, parent: cst.CSTNode) -> bool:
    """Whether a function is given to `partial` or as a `default_factory`."""
    call = context.source.parents.get(parent)
    if not isinstance(parent, cst.Arg) or not isinstance(call, cst.Call):
        return False
    if parent.keyword is not None:
        return parent.keyword.value == "default_factory"
    return last_part(call.func) == "partial"


def is_called_by_another_name(context: Context, parent: cst.CSTNode, use: Use) -> bool:
    """Whether `make = function` stands in the file, and a call `make(...)`."""
    if isinstance(parent, cst.Assign) and parent.value is use.node:
        targets = [dotted(each.target) for each in parent.targets]
    elif isinstance(parent, cst.AnnAssign) and parent.value is use.node:
        targets = [dotted(parent.target)]
    else:
        return False
    called = {dotted(call.func) for call in context.source.calls}
    return any(
        name is not None and not called.isdisjoint((name, f"self.{name}", f"cls.{name}")) for name in targets
    )
