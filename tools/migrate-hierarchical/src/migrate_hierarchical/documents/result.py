"""The result of migrating one file: plain data that worker processes can send."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..diagnostic import Diagnostic


@dataclass
class Result:
    """The result for one file; `new` is None if nothing changes."""

    path: str
    new: bytes | None = None
    rewritten: list[Diagnostic] = field(default_factory=list)
    left: list[Diagnostic] = field(default_factory=list)
    error: str | None = None
    old: bytes = b""
    # the files that import changed names from it, which are written before it
    takers: list[str] = field(default_factory=list)


class SourceReport:
    """What was rewritten in one source, and what was left."""

    def __init__(self) -> None:
        self.rewritten: list[Diagnostic] = []
        self.left: list[Diagnostic] = []
