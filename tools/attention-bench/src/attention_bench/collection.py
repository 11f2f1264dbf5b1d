"""Collection: the rows of a command, printed and saved as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from . import files, outcome
from .measure import free

Each = TypeVar("Each")
RowType = TypeVar("RowType", bound=outcome.PeerRow)


@dataclass
class Collection(Generic[RowType]):
    """The rows of a command; `file` is the JSON file or None, `where` the environment."""

    prog: str
    kind: str
    line: Callable[[RowType], str]
    file: str | None
    device: str
    where: dict[str, Any]
    rows: list[RowType] = field(default_factory=list)

    def add(self, made: Sequence[RowType]) -> None:
        for row in made:
            self.rows.append(row)
            print(self.line(row), flush=True)
        if self.file and self.rows:
            files.write(self.file, self.kind, self.rows, self.where)

    def collect(self, cases: Iterable[Each], measured: Callable[[Each], Sequence[RowType]]) -> int:
        """Measure all cases. Exit status 0; 1 if a peer has no figures; 130 if interrupted, with the figures so far saved."""
        try:
            for case in cases:
                free(self.device)
                self.add(measured(case))
        except KeyboardInterrupt as stopped:
            self.add(getattr(stopped, "rows", []))
            return outcome.interrupted(self.prog, self.rows, self.file)
        return outcome.finished(self.prog, self.rows)
