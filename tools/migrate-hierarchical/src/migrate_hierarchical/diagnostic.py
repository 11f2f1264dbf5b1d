"""One entry of the report: a use that was rewritten, or one that was left, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .density import Comparison


@dataclass
class Diagnostic:
    """Plain data that worker processes can send. `line` is set once the file is finished."""

    rule: str  # id of a rule, or of a reason in catalogue/reasons.py
    detail: str = ""  # specific to this use
    text: str = ""  # replaces the summary of the rule
    patterns: tuple[Comparison, ...] = ()  # the patterns that were written here, with those that they replace
    line: int = 1
    new_line: int | None = None  # in the rewritten file
