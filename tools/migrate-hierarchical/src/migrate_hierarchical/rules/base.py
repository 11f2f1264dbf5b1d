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
    """A rule as `--list-rules` and its page of the documentation show it; all texts are Markdown."""

    id: str
    summary: str
    before: str
    after: str
    why: str
    safe: str  # what stays as it was
    changes: Sequence[str]  # what the new code does otherwise; empty where it does nothing otherwise


# What most rules change.
OTHER_BLOCKS = """\
The new module computes other blocks, so its output differs: train again, or fine-tune. The report says the density and
the coverage of the old configuration and of the new one at `--seq-len`. The old module also normalised every block on
its own; the new one has one softmax over all keys that a query may see.
"""
ONE_SEGMENT = """\
Of `segment_lengths` one is left, because the scales now live in the pattern: a literal list keeps its first element, any
other expression becomes `expression[:1]`.
"""
SAME_PRESETS = """\
What differed between the presets is gone: each becomes the same pattern.
"""
KEPT_RATIOS = """\
An explicit literal `sparsity_ratio` up to 0.05 is kept. Any other becomes the default, with a note, because the old
pattern ignored it.
"""


@dataclass(frozen=True)
class Left:
    """A use that needs a person: a reason of rules/reasons.py and what is special about this one."""

    reason: str
    detail: str
    text: str = ""  # what is said in place of the reason's own line


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
