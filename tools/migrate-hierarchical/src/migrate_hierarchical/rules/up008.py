"""UP008: fields that the pattern does not take."""

from __future__ import annotations

from ..removed_api import PATTERN
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import TAKEN_BY

RULE = "UP008"


@edits(PATTERN)
def unused_fields(call: OldCall) -> None:
    if not call.wants(RULE) or call.stars or call.problem:
        return
    pattern = call.literal("pattern_type") if "pattern_type" in call.places else "local_window"
    for name, patterns in TAKEN_BY.items():
        if pattern is not None and pattern not in patterns and name in call.places:
            call.remove(RULE, name, f"has no effect on the pattern {pattern!r} and is removed")
