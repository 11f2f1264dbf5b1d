"""UP103: global tokens, which were counted in blocks, and of which there was one block by default."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import string_value
from ..removed_api import FACTORY, GET_PRESET, PATTERN
from ..upstream.calls import OldCall, edits, number
from ..upstream.old_api import ADAPTIVE, BASE, CREATE_MULTIHEAD, MULTIHEAD


@edits(PATTERN)
def argument(call: OldCall) -> None:
    pattern = call.literal("pattern_type") if "pattern_type" in call.places else "local_window"
    if pattern not in (None, "global_local") or call.stars or call.problem:
        return
    given = call.value("global_tokens") if "global_tokens" in call.places else None
    size = call.value("block_size") if "block_size" in call.places else None
    check_global_tokens(call, given, size, pattern is not None)


@edits(GET_PRESET)
def preset(call: OldCall) -> None:
    """The preset with global blocks."""
    name = call.literal("preset_name") if "preset_name" in call.places else call.literal("name")
    if name == "global_local" and not call.has("sparse_config"):
        call.leave("UP103", "the preset 'global_local' had 64 global blocks, 4096 tokens; it has 64 tokens")


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def field(call: OldCall) -> None:
    """That of a pattern given as a dictionary."""
    _, fields = call.pattern_fields()
    if "global_tokens" in fields and string_value(fields.get("pattern_type")) == "global_local":
        check_global_tokens(call, fields["global_tokens"], fields.get("block_size"), True)


def check_global_tokens(
    call: OldCall, given: cst.BaseExpression | None, size: cst.BaseExpression | None, is_global: bool
) -> None:
    block = 64.0 if size is None else number(size)
    blocks = 1.0 if given is None else number(given)
    if blocks == 0 or (given is None and not is_global):
        return
    written = "left out, which meant 1" if given is None else call.code(given)
    now = "" if block is None or blocks is None else f", {blocks * block:.0f} tokens"
    call.leave(
        "UP103", f"global_tokens={written}{now}" if given is not None else f"global_tokens {written}{now}"
    )
