"""HIER003: the function that created a module from the name of a configuration."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..density import LEVELS
from ..diagnostic import Diagnostic
from ..removed_api import FACTORY_PARAMETERS, REMOVED_CREATE_BLOCK_SPARSE
from .hier005 import IGNORED
from .shared.module_call import OldForm, module_call
from .shared.registry import Decision, rewrites

RULE = "HIER003"


@rewrites(RULE, REMOVED_CREATE_BLOCK_SPARSE)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    preset = arguments.literal("preset") if "preset" in arguments.named else "standard"
    if preset is None:
        return Diagnostic("HIER105", "preset=" + context.module.code_for_node(arguments.named["preset"]))
    if preset not in LEVELS:
        return Diagnostic("HIER111", f"there was no preset {preset!r}")
    if "hierarchical_config" in arguments.named or "variant" in arguments.named:
        return Diagnostic("HIER111", "hierarchical_config and variant were given twice")
    old = OldForm(RULE, ("preset", *FACTORY_PARAMETERS[1:]), IGNORED, True, preset, ("preset",))
    return module_call(context, changes, use, call, arguments, old)
