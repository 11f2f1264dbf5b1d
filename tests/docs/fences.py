"""Finds the Python fences of Markdown files, also inside tabs and with titles, and runs them.

A fence that shows a script of examples/ is not among them: `test_example_scripts.py` runs the script itself.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        # test_rule_pages.py has these
        *(path for path in ROOT.glob("docs/**/*.md") if path.parent.name != "rules"),
        *ROOT.glob("*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("tools/*/README.md"),
    ]
)

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ ]*(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
SCRIPT = re.compile(r'\s*--8<-- "(examples/[\w.]+)"\s*')


@dataclass(frozen=True)
class Fence:
    """One fenced block: where its first line of code is, its title, and the code without its indent."""

    path: Path
    line: int
    title: str
    code: str

    def run(self, namespace: dict[str, object]) -> None:
        """Execute the code; a traceback names the line of the Markdown file."""
        exec(compile("\n" * (self.line - 1) + self.code, str(self.path), "exec"), namespace)


def find_python_fences(path: Path) -> list[Fence]:
    """The Python fences of a page, from top to bottom."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        if re.match(r"\{?\s*\.?(python|py)\b", info) is None:
            continue
        if SCRIPT.fullmatch(match["body"]):
            continue
        title = re.search(r'title="([^"]*)"', info)
        line = text.count("\n", 0, match.start("body")) + 1
        code = textwrap.dedent(match["body"])
        found.append(Fence(path, line, title[1] if title else "", code))
    return found
