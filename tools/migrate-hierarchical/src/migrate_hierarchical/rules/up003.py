"""UP003: the old default pattern, where a call relied on it."""

from __future__ import annotations

import libcst as cst

from ..edit.build import Item, string
from ..edit.build import call as new_call
from ..removed_api import FACTORY, PATTERN
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import BASE, CREATE_MULTIHEAD, MULTIHEAD, OLD_WINDOW, WITH_WINDOW

RULE = "UP003"

NOT_THEIRS = ("adaptive", "distributed")  # variants that had another default


@edits(PATTERN)
def pattern(call: OldCall) -> None:
    """`SparsePatternConfig()` was a window of 256 tokens, and a ratio given to it had no effect."""
    if not call.wants(RULE) or call.stars or call.problem:
        return
    given = "pattern_type" in call.places
    if given and call.literal("pattern_type") not in WITH_WINDOW:
        return
    if not given:
        style = call.context.style(call.call)
        if style is None:
            call.leave("UP110", "inside nested f-strings")
            return
        call.add(RULE, "pattern_type", string("local_window", style), in_front=True)
    if "window_size" not in call.places:
        call.add(RULE, "window_size", cst.Integer(str(OLD_WINDOW)))
        if "sparsity_ratio" in call.places:
            call.note(RULE, "sparsity_ratio has no effect beside window_size, as in 0.2.0")


@edits(BASE, MULTIHEAD, FACTORY, CREATE_MULTIHEAD)
def module(call: OldCall) -> None:
    """Modules without a sparse_config had this pattern."""
    if not call.wants(RULE) or call.stars or call.problem:
        return
    if call.has("sparse_config", "sparsity_config", "sparse_pattern_config"):
        return
    if call.use.name == FACTORY and not uses_pattern(call):
        return
    if call.has("sparsity_ratio"):
        call.leave("UP104", "sparsity_ratio without a pattern_type")
        return
    style = call.context.style(call.call)
    if style is None:
        call.leave("UP110", "inside nested f-strings")
        return
    inside = [
        Item("pattern_type", string("local_window", style)),
        Item("window_size", cst.Integer(str(OLD_WINDOW))),
    ]
    if call.use.name == FACTORY and call.has("block_size"):  # it was a field of the default pattern
        size = call.value("block_size")
        call.remove(RULE, "block_size", "is written into the pattern")
        if call.places["block_size"] not in call.gone:
            return
        inside.insert(1, Item("block_size", size))
    one_line = type(style)(style.quote, None, style.from_block, style.unit)
    config = new_call(call.changes.name(call.use, PATTERN), inside, one_line)
    name = "sparsity_config" if "sparsity_config" in call.places else "sparse_config"
    call.give(RULE, name, config)


def uses_pattern(call: OldCall) -> bool:
    """Whether the factory made a variant with this default."""
    variant = call.literal("variant") if "variant" in call.places else "auto"
    if variant is None:
        call.leave("UP105", f"variant={call.code(call.value('variant'))}")
        return False
    if variant == "auto" and call.has("distributed_config"):
        return False
    if variant == "auto" and call.has("adaptive_config") and not call.has("embed_dim"):
        return False
    return variant not in NOT_THEIRS
