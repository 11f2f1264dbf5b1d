"""UP007: the multihead module, whose inputs were batch-first by default."""

from __future__ import annotations

import libcst as cst

from ..removed_api import FACTORY
from ..upstream.calls import OldCall, edits, is_multihead
from ..upstream.old_api import CREATE_MULTIHEAD, MULTIHEAD

RULE = "UP007"


@edits(MULTIHEAD, FACTORY, CREATE_MULTIHEAD)
def multihead(call: OldCall) -> None:
    if call.use.name == FACTORY and not is_multihead(call):
        return
    if call.wants(RULE) and not call.stars and not call.problem and "batch_first" not in call.places:
        call.add(RULE, "batch_first", cst.Name("True"))
    call.leave("UP106", call.use.name)
