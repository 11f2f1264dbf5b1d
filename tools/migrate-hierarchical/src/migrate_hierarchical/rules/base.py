"""What a rule is and what it decides about a use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import libcst as cst

from ..density import LEVELS, Levels, levels_of

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


@dataclass(frozen=True)
class OldPattern:
    """A removed configuration, as far as it is literal."""

    name: str
    levels: Levels
    guessed: tuple[str, ...] = ()  # what is not literal, where the default stands for it


def preset_pattern(name: str) -> OldPattern:
    return OldPattern(name, levels_of(LEVELS[name]))


def default_pattern(*guessed: str) -> OldPattern:
    """The configuration of a call without one, which also stands for what is not literal."""
    return OldPattern("default", levels_of(LEVELS["standard"]), guessed)


@dataclass(frozen=True)
class BlockSizes:
    """Tokens per block, before and after."""

    old: int = 64
    new: int = 64
    literal: bool = True  # False: not known, the default stands for it


@dataclass
class Rewrite:
    """A use that is rewritten. `make` gets the call with its arguments already rewritten."""

    rule: str
    make: Callable[[Any], cst.BaseExpression]
    notes: list[str] = field(default_factory=list)
    absorbs: list[cst.CSTNode] = field(
        default_factory=list
    )  # calls inside that are not rewritten on their own
    old: Sequence[OldPattern] = ()  # of each pattern that is written, what stood there
    block_sizes: BlockSizes = BlockSizes()
    ratio: float | None = None  # of the new pattern; None: that of the settings
    keeps_name: bool = False  # the new call is of the same function
    todo: Left | None = None  # rewritten, and still something for a person


Decision = Rewrite | Left | None  # None: the call is no use of the removed API
Decide = Callable[["Planner", "Use", cst.Call, "Arguments"], Decision]
