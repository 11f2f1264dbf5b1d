"""HIER001: the class, called."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..removed_api import PARAMETERS, REMOVED_CLASS
from .shared.module_call import OldForm, module_call
from .shared.registry import Decision, rewrites

RULE = "HIER001"


@rewrites(RULE, REMOVED_CLASS)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    if "segment_lengths" not in arguments.named and not arguments.stars:
        arguments.problem = arguments.problem or "segment_lengths is missing"
    return module_call(context, changes, use, call, arguments, OldForm(RULE, PARAMETERS[REMOVED_CLASS]))
