"""What a rule is and what it decides about a use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import libcst as cst

if TYPE_CHECKING:
    from ..analysis.uses import Use
    from ..edit.arguments import Arguments
    from ..plan import Planner


@dataclass(frozen=True)
class Rule:
    """A rule as the documentation shows it."""

    id: str
    summary: str
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """A use that needs a person: a reason of rules/reasons.py and what is special about this one."""

    reason: str
    detail: str


@dataclass
class Rewrite:
    """A use that is rewritten. `make` gets the call with its arguments already rewritten."""

    rule: str
    make: Callable[[Any], cst.BaseExpression]
    notes: list[str] = field(default_factory=list)
    absorbs: list[cst.CSTNode] = field(
        default_factory=list
    )  # calls inside that are not rewritten on their own
    old_levels: tuple[str, object] | None = None  # name and levels of a literal old configuration
    block_sizes: tuple[int, int] = (64, 64)  # of that configuration and of the new pattern
    keeps_name: bool = False  # the new call is of the same function
    todo: Left | None = None  # rewritten, and still something for a person


Decision = Rewrite | Left | None  # None: the call is no use of the removed API
Decide = Callable[["Planner", "Use", cst.Call, "Arguments"], Decision]
