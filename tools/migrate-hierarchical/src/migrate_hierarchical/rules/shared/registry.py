"""How a rule registers itself, and the type of its decision about a call."""

from __future__ import annotations

from collections.abc import Callable

import libcst as cst

from ...analysis.arguments import Arguments
from ...analysis.uses import Use
from ...changes import Changes, Rewrite
from ...context import Context
from ...diagnostic import Diagnostic

Decision = Rewrite | Diagnostic | None  # None: the call does not use the removed API
Decide = Callable[[Context, Changes, Use, cst.Call, Arguments], Decision]

# Name in the package -> the rule for calls of it, and the function that decides.
RULE_OF: dict[str, str] = {}
DECIDERS: dict[str, Decide] = {}


def rewrites(rule: str, *names: str) -> Callable[[Decide], Decide]:
    """Register the function that decides about calls of these names in the package."""

    def register(decide: Decide) -> Decide:
        for name in names:
            RULE_OF[name], DECIDERS[name] = rule, decide
        return decide

    return register
