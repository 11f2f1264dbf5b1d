"""How a command that measures peers ends: messages and exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from .counts import counted

INTERRUPTED = 130  # exit status after Ctrl-C


class PeerRow(Protocol):
    """The figures of a peer, or the reason why there are none."""

    refused: str | None

    @property
    def peer(self) -> str: ...

    @property
    def has_figures(self) -> bool: ...


RowType = TypeVar("RowType", bound=PeerRow)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the rows that have figures."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)


@contextmanager
def interruptible(rows: list[RowType]) -> Iterator[None]:
    """Turn Ctrl-C into `Interrupted` with the rows that have figures so far."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted([row for row in rows if row.has_figures]) from None


def interrupted(prog: str, rows: Sequence[PeerRow], file: str | None) -> int:
    """Report what was measured before Ctrl-C; returns the exit status."""
    where = (
        "nothing was measured"
        if not rows
        else f"measured {counted(len(rows), 'row')}" + (f", written to {file}" if file else "")
    )
    print(f"{prog}: interrupted; {where}", file=sys.stderr)
    return INTERRUPTED


def without_figures(rows: Sequence[PeerRow]) -> dict[str, str]:
    """The peers without any figures, with the first reason."""
    measured = {row.peer for row in rows if row.has_figures}
    reasons: dict[str, str] = {}
    for row in rows:
        if row.peer not in measured:
            reasons.setdefault(row.peer, row.refused or "unknown")
    return reasons


def finished(prog: str, rows: Sequence[PeerRow]) -> int:
    """Report the peers without any figures; returns the exit status, 1 if there are any."""
    missing = without_figures(rows)
    for peer, reason in missing.items():
        print(f"{prog}: {peer} measured nothing: {reason}", file=sys.stderr)
    return 1 if missing else 0
