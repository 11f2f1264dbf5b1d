"""Figures as a Markdown table with the environment below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .environment import footnote


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], where: dict[str, Any], notes: Sequence[str] = ()
) -> str:
    """One line per row, then the notes, and the environment."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n\n".join(["\n".join(lines), *notes, footnote(where)])
