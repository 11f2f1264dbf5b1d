"""Collection: the rows of a command, printed and saved as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from . import files, outcome
from .budget import Budget
from .measure import free

Each = TypeVar("Each")
RowType = TypeVar("RowType", bound=outcome.PeerRow)


@dataclass
class Collection(Generic[RowType]):
    """The rows of a command; `file` is the JSON file or None, `where` the environment, `table` shows all rows at the end."""

    prog: str
    kind: str
    line: Callable[[RowType], str]
    file: str | None
    device: str
    where: dict[str, Any]
    rows: list[RowType] = field(default_factory=list)
    table: Callable[[list[RowType]], Table] | None = None

    def add(self, made: Sequence[RowType]) -> None:
        for row in made:
            self.rows.append(row)
            print(self.line(row), flush=True)
        if self.file and self.rows:
            files.write(self.file, self.kind, self.rows, self.where)

    def collect(
        self,
        cases: Iterable[Each],
        measured: Callable[[Each], Sequence[RowType]],
        budget: Budget | None = None,
    ) -> int:
        """Measure all cases, or those that fit a budget. Exit status 0; 1 if a peer has no figures; 130 if interrupted, with
        the figures so far saved."""
        left_out: list[str] = []
        try:
            for case in cases:
                if budget is not None and not budget.fits(str(case)):
                    left_out.append(str(getattr(case, "label", case)))
                    continue
                free(self.device)
                self.add(measured(case))
        except KeyboardInterrupt as stopped:
            self.add(getattr(stopped, "rows", []))
            return outcome.interrupted(self.prog, self.rows, self.file)
        if left_out and budget is not None:
            self.where = {**self.where, "left_out": left_out}
            self.add([])
        if self.rows and self.table is not None:
            Console(width=None if sys.stdout.isatty() else 180).print(self.table(self.rows))
        if left_out and budget is not None:
            print(f"{budget.left_out()}: {'; '.join(left_out)}", flush=True)
        return outcome.finished(self.prog, self.rows)
