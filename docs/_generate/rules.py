"""The codemod's rules as tabs, and its reasons as a table."""

from __future__ import annotations

import textwrap
from pathlib import Path

from migrate_hierarchical.rules import RULES
from migrate_hierarchical.rules.reasons import REASONS


def tab(title: str, code: str) -> str:
    fence = f'```python title="{title}"\n{code}```\n'
    return f'=== "{title}"\n\n' + textwrap.indent(fence, "    ")


def write(markdown: Path, assets: Path) -> None:
    parts = []
    for rule in RULES:
        parts.append(f"### {rule.id}\n\n{rule.summary[0].upper()}{rule.summary[1:]}.\n")
        parts.append(tab("Before", rule.before))
        parts.append(tab("After", rule.after))
    (markdown / "rules.md").write_text("\n".join(parts), "utf-8")
    table = ["| id | why, and what to do |", "|---|---|"]
    table += [f"| {reason} | {text} |" for reason, text in REASONS.items()]
    (markdown / "reasons.md").write_text("\n".join(table) + "\n", "utf-8")
