"""HIER004: the function that took embed_dim and num_heads and did not use them."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..removed_api import PARAMETERS, REMOVED_CREATE_ATTENTION
from .shared.module_call import OldForm, module_call
from .shared.registry import Decision, rewrites

RULE = "HIER004"

IGNORED = {
    "embed_dim": "embed_dim had no effect and is removed",
    "num_heads": "num_heads had no effect and is removed",
}


@rewrites(RULE, REMOVED_CREATE_ATTENTION)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    return module_call(
        context, changes, use, call, arguments, OldForm(RULE, PARAMETERS[REMOVED_CREATE_ATTENTION], IGNORED)
    )
