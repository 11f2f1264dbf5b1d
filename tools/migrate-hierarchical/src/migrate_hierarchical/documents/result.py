"""The result of migrating one file; plain data, so that worker processes can send it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..diagnostic import Diagnostic


@dataclass
class Result:
    """Everything about one file. `new` is None when nothing changes."""

    path: str
    new: bytes | None = None
    rewritten: list[Diagnostic] = field(default_factory=list)
    left: list[Diagnostic] = field(default_factory=list)
    error: str | None = None
    old: bytes = b""
    # files that import from it what changes: written before it
    takers: list[str] = field(default_factory=list)
