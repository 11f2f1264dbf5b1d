"""HIER007: a pattern of the hierarchical type."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments, read_arguments
from ..analysis.uses import Use
from ..changes import Changes, Rewrite
from ..context import Context
from ..density import default_pattern
from ..diagnostic import Diagnostic
from ..edit.build import pattern_config
from ..removed_api import HIERARCHICAL, PATTERN, PATTERN_PARAMETERS
from .shared.module_call import block_sizes_of, ratio_of
from .shared.registry import Decision, rewrites

RULE = "HIER007"

NO_EFFECT = ("window_size", "global_tokens", "dilation_rates")


@rewrites(RULE, PATTERN)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    named = arguments.named
    if "pattern_type" not in named:
        if arguments.stars and context.may_hold_hierarchical(arguments.stars, use.scope):
            return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
        return None
    pattern = arguments.literal("pattern_type")
    if pattern is None:
        code = context.module.code_for_node(named["pattern_type"])
        may_be = context.may_be_hierarchical(named["pattern_type"], use.scope)
        return Diagnostic("HIER105", f"pattern_type={code}") if may_be else None
    if pattern != HIERARCHICAL:
        return None
    if arguments.problem:
        return Diagnostic("HIER111", arguments.problem)
    if arguments.stars:
        return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
    style = context.style(call)
    if style is None:
        return Diagnostic("HIER112", "inside nested f-strings")
    notes = [
        f"{name} had no effect on the hierarchical pattern and is removed"
        for name in NO_EFFECT
        if name in named
    ]
    ratio = ratio_of(named.get("sparsity_ratio"))
    if "sparsity_ratio" in named and ratio is None:
        notes.append("sparsity_ratio had no effect on the hierarchical pattern: the default is used")
    notes += [f"{name} is not an argument and is removed" for name in named if name not in PATTERN_PARAMETERS]
    function = changes.name(use, PATTERN)
    block_sizes, other = block_sizes_of(named.get("block_size"), notes)

    def make(updated: cst.Call) -> cst.BaseExpression:
        block_size = other or read_arguments(updated.args, PATTERN_PARAMETERS).named.get("block_size")
        return pattern_config(
            function, context.settings, style, block_size, ratio, updated.lpar, updated.rpar
        )

    return Rewrite(RULE, make, notes, old=[default_pattern()], block_sizes=block_sizes, ratio=ratio)
