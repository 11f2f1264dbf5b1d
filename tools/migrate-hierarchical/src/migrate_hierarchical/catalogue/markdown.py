"""The rules as the documentation shows them: `python -m migrate_hierarchical.catalogue.markdown`."""

from __future__ import annotations

from . import REASONS, RULES


def rules_as_markdown() -> str:
    """Every rule with its code before and after, then the reasons why uses are left to a person."""
    parts = []
    for rule in RULES:
        parts.append(f"### {rule.id}\n\n{rule.summary[0].upper()}{rule.summary[1:]}.\n")
        parts.append(f'```python title="Before"\n{rule.before}```\n')
        parts.append(f'```python title="After"\n{rule.after}```\n')
    parts.append("### What is left to you\n\n| id | why, and what to do |\n|---|---|")
    table = "\n".join(f"| {reason} | {text} |" for reason, text in REASONS.items())
    return "\n".join(parts) + "\n" + table + "\n"


if __name__ == "__main__":
    print(rules_as_markdown(), end="")
