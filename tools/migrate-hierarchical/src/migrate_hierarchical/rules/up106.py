"""UP106: calls of multihead modules that pass by position what was is_causal. UP007 marks those that make one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import libcst as cst

from ..changes import Changes
from ..context import Context
from ..removed_api import FACTORY
from ..upstream.calls import OldCall, is_multihead
from ..upstream.made_modules import calls_of, is_module
from ..upstream.names import OldNames
from ..upstream.old_api import CREATE_MULTIHEAD, MULTIHEAD

SEVENTH = 7


def check_seventh(context: Context, changes: Changes, names: OldNames) -> None:
    made = set(multiheads_made(context, changes, names))
    for call in context.source.calls if made else ():
        by_position = list(takewhile(lambda arg: arg.keyword is None and not arg.star, call.args))
        if len(by_position) >= SEVENTH and is_module(context, call.func, made):
            changes.leave(
                call,
                "UP106",
                "",
                "the seventh argument was is_causal and is average_attn_weights now: pass it by name",
            )


def multiheads_made(context: Context, changes: Changes, names: OldNames) -> Iterator[cst.Call]:
    """The calls that make a multihead module."""
    for use, call in calls_of(context, names):
        if use.name in (MULTIHEAD, CREATE_MULTIHEAD) or (
            use.name == FACTORY and is_multihead(OldCall(context, changes, use, call, False))
        ):
            yield call
