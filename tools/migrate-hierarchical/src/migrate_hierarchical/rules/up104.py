"""UP104: a pattern given as a dictionary without a type. UP003 marks a ratio beside the default pattern."""

from __future__ import annotations

from ..removed_api import FACTORY, GET_PRESET
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import ADAPTIVE, BASE, CREATE_MULTIHEAD, MULTIHEAD


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def field(call: OldCall) -> None:
    name, fields = call.pattern_fields()
    if name and "pattern_type" not in fields:
        call.leave("UP104", f"{name} without a pattern_type")
