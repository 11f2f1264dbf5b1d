"""UP007: the multihead module, whose inputs were batch-first by default."""

from __future__ import annotations

import libcst as cst

from ..removed_api import FACTORY
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import CREATE_MULTIHEAD, MULTIHEAD

RULE = "UP007"


@edits(MULTIHEAD, FACTORY, CREATE_MULTIHEAD)
def multihead(call: OldCall) -> None:
    if call.use.name == FACTORY and not is_multihead(call):
        return
    if call.wants(RULE) and not call.stars and not call.problem and "batch_first" not in call.places:
        call.add(RULE, "batch_first", cst.Name("True"))
    call.leave("UP106", call.use.name)


def is_multihead(call: OldCall) -> bool:
    """Whether the factory makes the multihead variant."""
    if "variant" in call.places and call.literal("variant") != "auto":
        return call.literal("variant") == "multihead"
    return call.has("embed_dim") and call.has("num_heads") and not call.has("distributed_config")
