"""The rules as the documentation shows them: `python -m migrate_hierarchical.catalogue.markdown`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import REASONS, RULES, UP_REASONS, UP_RULES, Rule


def rules_as_markdown() -> str:
    """Every rule with its code before and after, then the reasons why uses are left to a person."""
    return (
        group_as_markdown(RULES, REASONS, "What is left to you", "Before")
        + "\n"
        + group_as_markdown(UP_RULES, UP_REASONS, "What `--select UP` leaves to you", "Before, for 0.2.0")
    )


def group_as_markdown(rules: Iterable[Rule], reasons: Mapping[str, str], heading: str, title: str) -> str:
    parts = []
    for rule in rules:
        parts.append(f"### {rule.id}\n\n{rule.summary[0].upper()}{rule.summary[1:]}.\n")
        parts.append(f'```python title="{title}"\n{rule.before}```\n')
        parts.append(f'```python title="After"\n{rule.after}```\n')
    parts.append(f"### {heading}\n\n| id | why, and what to do |\n|---|---|")
    table = "\n".join(f"| {reason} | {text} |" for reason, text in reasons.items())
    return "\n".join(parts) + "\n" + table + "\n"


if __name__ == "__main__":
    print(rules_as_markdown(), end="")
