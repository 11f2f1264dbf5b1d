"""One line of the report: a use that was rewritten, or one that is left and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .density import Comparison


@dataclass
class Diagnostic:
    """Plain data, so that worker processes can send it. `line` is filled in when the file is finished."""

    rule: str  # or a reason of catalogue/reasons.py
    detail: str = ""  # what is special about this use
    text: str = ""  # what is said in place of the rule's own line
    patterns: tuple[Comparison, ...] = ()  # that were written here, with what they replace
    line: int = 1
    new_line: int | None = None  # in the file as it was rewritten
