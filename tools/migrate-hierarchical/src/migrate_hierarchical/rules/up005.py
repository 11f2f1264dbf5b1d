"""UP005: the first parameter of get_block_sparse_preset, by its old name."""

from __future__ import annotations

from ..removed_api import GET_PRESET
from ..upstream.calls import OldCall, edits

RULE = "UP005"


@edits(GET_PRESET)
def preset_name(call: OldCall) -> None:
    place = call.places.get("preset_name")
    if place is not None and call.call.args[place].keyword is not None and call.wants(RULE):
        call.keywords[place] = "name"
        call.note(RULE, "")
