"""What one file's migration found and made; plain data, so that worker processes can send it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..density import Comparison


@dataclass
class Entry:
    """A use that was rewritten, or one that is left."""

    line: int
    rule: str
    detail: str = ""
    new_line: int | None = None  # in the file as it was rewritten
    text: str = ""  # what is said in place of the rule's own line
    patterns: tuple[Comparison, ...] = ()  # that were written here, with what they replace


@dataclass
class Result:
    """Everything about one file. `new` is None when nothing changes."""

    path: str
    new: bytes | None = None
    rewritten: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    error: str | None = None
    old: bytes = b""
