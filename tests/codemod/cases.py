"""The fixtures: cases with the code before and after.

A file holds cases one after the other: a line `=== NAME FLAGS`, the code before, a line `--- becomes`, the code after
(in untouched.txt only the code, which stays). Flags: `run` executes the code after against the real package,
`path=...` is the path that the file would have. In reports.txt a name begins with the reason that is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Case:
    file: str
    name: str
    before: str
    after: str
    path: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.file}-{self.name.replace(' ', '-')}"


def load(file: Path) -> list[Case]:
    cases = []
    for part in re.split(r"^=== ", file.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        before, separator, after = body.partition("--- becomes\n")
        words = head.split()
        flags = [word for word in words if word == "run" or word.startswith("path=")]
        path = next((flag[5:] for flag in flags if flag.startswith("path=")), "example.py")
        name = " ".join(word for word in words if word not in flags)
        cases.append(Case(file.stem, name, before, after if separator else before, path, "run" in flags))
    return cases


CASES = [case for file in sorted(FIXTURES.glob("*.txt")) for case in load(file)]
