"""Figures as a Markdown table with the environment below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .environment import footnote


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], where: dict[str, Any]) -> str:
    """One line per row, then the environment."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n\n" + footnote(where)
