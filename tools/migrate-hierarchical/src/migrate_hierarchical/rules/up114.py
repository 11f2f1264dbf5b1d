"""UP114: attention over several GPUs, which takes a mesh and no sizes of a dense module."""

from __future__ import annotations

from ..removed_api import FACTORY
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import DISTRIBUTED_CONFIG, DISTRIBUTED_FIELDS


@edits(FACTORY)
def variant(call: OldCall) -> None:
    """The variant that had a mesh of its own."""
    has_config = call.has("distributed_config")
    if (call.literal("variant") if "variant" in call.places else "auto") not in (
        ("distributed", "auto") if has_config else ("distributed",)
    ):
        return
    sizes = [name for name in ("embed_dim", "num_heads") if call.has(name)]
    if sizes:
        call.leave("UP114", ", ".join(sizes))
    elif not has_config and not call.stars:
        call.leave("UP114", "no distributed_config")


@edits(DISTRIBUTED_CONFIG)
def config(call: OldCall) -> None:
    """A config without a mesh. What stands first in one of today is its mesh, so positions say nothing."""
    fields = [name for name in call.places if name in DISTRIBUTED_FIELDS and is_named(call, name)]
    if fields or not call.call.args:
        call.leave("UP114", ", ".join(fields) or "no mesh")


def is_named(call: OldCall, name: str) -> bool:
    return call.call.args[call.places[name]].keyword is not None
