"""HIER006: a hierarchical preset by name."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..diagnostic import Diagnostic
from ..removed_api import FACTORY_PARAMETERS, GET_PRESET, KEYWORD, REMOVED_PRESETS
from .hier005 import IGNORED, without_keyword
from .shared.module_call import OldForm, module_call
from .shared.registry import Decision, rewrites

RULE = "HIER006"

OTHER_VARIANTS = ("base", "adaptive", "multihead", "distributed")  # these never read hierarchical_config


@rewrites(RULE, GET_PRESET)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    keyword = "name" if "name" in arguments.named else "preset_name"
    if keyword not in arguments.named:
        if arguments.stars and context.may_hold_hierarchical(arguments.stars, use.scope):
            return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
        return None
    preset = arguments.literal(keyword)
    if preset is None:
        code = context.module.code_for_node(arguments.named[keyword])
        may_be = KEYWORD in arguments.named or context.may_be_hierarchical(
            arguments.named[keyword], use.scope
        )
        return Diagnostic("HIER105", f"{keyword}={code}") if may_be else None
    if preset not in REMOVED_PRESETS:
        if KEYWORD not in arguments.named:
            return None
        if arguments.problem:
            return Diagnostic("HIER111", arguments.problem)
        if "variant" in arguments.named and arguments.literal("variant") not in OTHER_VARIANTS:
            return Diagnostic("HIER111", "variant is overridden")
        if arguments.stars:
            return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
        return without_keyword(context, changes, use, call, arguments, RULE, f"preset {preset!r}")
    if "variant" in arguments.named:
        return Diagnostic("HIER111", "variant is overridden")
    levels = None if "hierarchical_config" in arguments.named else REMOVED_PRESETS[preset]
    parameters = ("preset_name", *FACTORY_PARAMETERS[1:])
    old = OldForm(RULE, parameters, IGNORED, True, levels, ("preset_name", "name"))
    return module_call(context, changes, use, call, arguments, old)
