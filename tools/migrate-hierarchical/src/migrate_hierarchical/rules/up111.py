"""UP111: keywords that have another name or place now."""

from __future__ import annotations

from ..removed_api import FACTORY, GET_PRESET
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import ADAPTIVE, BASE, CREATE_ADAPTIVE, CREATE_MULTIHEAD, MULTIHEAD, OTHER_KEYWORDS


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD, CREATE_ADAPTIVE)
def other_keywords(call: OldCall) -> None:
    for name, instead in OTHER_KEYWORDS.items():
        if name in call.places:
            call.leave("UP111", f"{name}: {instead}")
