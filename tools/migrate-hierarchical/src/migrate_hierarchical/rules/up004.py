"""UP004: keywords that mean nothing now."""

from __future__ import annotations

from ..removed_api import FACTORY, GET_PRESET
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import (
    ADAPTIVE,
    BASE,
    CREATE_ADAPTIVE,
    CREATE_MULTIHEAD,
    MULTIHEAD,
    REMOVED_KEYWORDS,
    RENAMED_KEYWORDS,
)

RULE = "UP004"


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD, CREATE_ADAPTIVE)
def keywords(call: OldCall) -> None:
    if not call.wants(RULE):
        return
    for name in sorted(REMOVED_KEYWORDS & call.places.keys(), key=call.places.__getitem__):
        call.remove(RULE, name, "means nothing now and is removed")
    for old, new in RENAMED_KEYWORDS.items():
        if old in call.places and new not in call.places:
            call.keywords[call.places[old]] = new
            call.note(RULE, f"{old} is called {new} now")
