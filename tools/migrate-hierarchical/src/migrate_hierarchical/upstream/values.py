"""Marks arguments that are valid in both versions and mean something else now."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import is_none, literal_mapping, string_value
from ..removed_api import FACTORY, GET_PRESET, PATTERN
from .calls import OldCall, edits, number
from .numbers import Numbers
from .old_api import (
    ADAPTIVE,
    BASE,
    CREATE_ADAPTIVE,
    CREATE_MULTIHEAD,
    DISTRIBUTED_CONFIG,
    DISTRIBUTED_FIELDS,
    MULTIHEAD,
    OTHER_KEYWORDS,
    SPARSEST,
    WITH_WINDOW,
)


@edits(PATTERN, BASE, MULTIHEAD, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def ratio(call: OldCall) -> None:
    """A ratio that was meant as the fraction dropped."""
    if "sparsity_ratio" in call.places and not (call.use.name == PATTERN and window_decides(call)):
        check_ratio(call, call.value("sparsity_ratio"))


def window_decides(call: OldCall) -> bool:
    """Whether the pattern is a window of fixed width, beside which a ratio has no effect; UP003 writes the default."""
    writes = call.wants("UP003") and not call.stars and not call.problem
    if call.literal("pattern_type") not in WITH_WINDOW and ("pattern_type" in call.places or not writes):
        return False
    return call.has("window_size") if "window_size" in call.places else writes


def check_ratio(call: OldCall, node: cst.BaseExpression) -> None:
    high = [value for value in Numbers(call.context).of(node) if SPARSEST <= value < 1]
    if high:
        value = "" if number(node) is not None else ", " + " or ".join(f"{each:.6g}" for each in sorted(high))
        call.leave("UP102", f"sparsity_ratio={call.code(node)}{value}")


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def shorthands(call: OldCall) -> None:
    """sparsity_ratio and block_size beside a pattern, which counted alone."""
    has_pattern = call.use.name == GET_PRESET or call.has("sparse_config", "sparsity_config")
    given = [name for name in ("sparsity_ratio", "block_size") if call.has(name)]
    if not has_pattern:  # the classes took no block_size
        given = [name for name in given if name == "block_size" and call.use.name in (BASE, MULTIHEAD)]
    if given:
        call.leave("UP112", ", ".join(f"{name}={call.code(call.value(name))}" for name in given))


@edits(PATTERN)
def global_tokens(call: OldCall) -> None:
    """They were counted in blocks, and there was one by default."""
    pattern = call.literal("pattern_type") if "pattern_type" in call.places else "local_window"
    if pattern not in (None, "global_local") or call.stars or call.problem:
        return
    given = call.value("global_tokens") if "global_tokens" in call.places else None
    size = call.value("block_size") if "block_size" in call.places else None
    check_global_tokens(call, given, size, pattern is not None)


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


@edits(GET_PRESET)
def preset(call: OldCall) -> None:
    """The preset with global blocks."""
    name = call.literal("preset_name") if "preset_name" in call.places else call.literal("name")
    if name == "global_local" and not call.has("sparse_config"):
        call.leave("UP103", "the preset 'global_local' had 64 global blocks, 4096 tokens; it has 64 tokens")


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def fields_in_a_dictionary(call: OldCall) -> None:
    """A pattern given as a dictionary."""
    name = "sparse_config" if "sparse_config" in call.places else "sparsity_config"
    fields = literal_mapping(call.value(name)) if name in call.places else None
    if fields is None:
        return
    pattern, window = string_value(fields.get("pattern_type")), fields.get("window_size")
    fixed = pattern in WITH_WINDOW and window is not None and not is_none(window)
    if "sparsity_ratio" in fields and not fixed:
        check_ratio(call, fields["sparsity_ratio"])
    if "pattern_type" not in fields:
        call.leave("UP104", f"{name} without a pattern_type")
    if "global_tokens" in fields and pattern == "global_local":
        check_global_tokens(call, fields["global_tokens"], fields.get("block_size"), True)


@edits(
    BASE,
    MULTIHEAD,
    ADAPTIVE,
    FACTORY,
    GET_PRESET,
    CREATE_MULTIHEAD,
    CREATE_ADAPTIVE,
    DISTRIBUTED_CONFIG,
    PATTERN,
)
def unseen(call: OldCall) -> None:
    """Arguments that may be anything."""
    if call.problem:
        call.leave("UP105", call.problem)
    elif call.stars:
        arg = call.stars[0]
        call.leave("UP105", f"{arg.star}{call.code(arg.value)}")


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD, CREATE_ADAPTIVE)
def other_keywords(call: OldCall) -> None:
    """Keywords that have another name or place now."""
    for name, instead in OTHER_KEYWORDS.items():
        if name in call.places:
            call.leave("UP111", f"{name}: {instead}")


@edits(FACTORY)
def distributed(call: OldCall) -> None:
    """The variant that had a mesh of its own, and took a dense module's sizes."""
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
def distributed_config(call: OldCall) -> None:
    """A config without a mesh. What stands first in one of today is its mesh, so positions say nothing."""
    fields = [name for name in call.places if name in DISTRIBUTED_FIELDS and is_named(call, name)]
    if fields or not call.call.args:
        call.leave("UP114", ", ".join(fields) or "no mesh")


def is_named(call: OldCall, name: str) -> bool:
    return call.call.args[call.places[name]].keyword is not None
