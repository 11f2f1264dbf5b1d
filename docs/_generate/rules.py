"""The codemod's rules as tabs under the names that they replace, and its reports as a table."""

from __future__ import annotations

import textwrap
from pathlib import Path

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.catalogue.reasons import REASONS

# The heading of each rule's section: the name that people look for, instead of the rule's id.
HEADINGS = {
    "HIER001": "`BlockSparseHierarchical`",
    "HIER002": "`HierarchicalConfig` and `get_hierarchical_presets`",
    "HIER003": "`create_hierarchical_block_sparse`",
    "HIER004": "`create_hierarchical_attention`",
    "HIER005": '`create_block_sparse_attention("hierarchical", hierarchical_config=...)`',
    "HIER006": "The presets `hierarchical_standard`, `hierarchical_fine` and `hierarchical_long`",
    "HIER007": '`pattern_type="hierarchical"`',
    "HIER008": "Type annotations, `isinstance` and re-exports",
    "HIER009": "Imports, and the module `block_sparse_hierarchical`",
}


def heading(rule_id: str) -> str:
    """The heading of a rule's section, with the id as its anchor."""
    return f"### {HEADINGS.get(rule_id, rule_id)} {{ #{rule_id.lower()} }}"


def link(name: str) -> str:
    """The id of a rule or report, which leads to its page."""
    return f"[{name}](rules/{name}.md)"


def tab(title: str, code: str, style: str = "") -> str:
    """A tab that shows code under a title; `style` is a class such as ".wrap"."""
    language = f"{{.python {style}" if style else "python"
    fence = f'```{language} title="{title}"{"}" if style else ""}\n{code}```\n'
    return f'=== "{title}"\n\n' + textwrap.indent(fence, "    ")


def write(markdown: Path, assets: Path) -> None:
    parts = []
    for rule in RULES:
        parts.append(
            f"{heading(rule.id)}\n\n{rule.summary[0].upper()}{rule.summary[1:]} ({link(rule.id)}).\n"
        )
        parts.append(tab("Before", rule.before))
        parts.append(tab("After", rule.after))
    (markdown / "rules.md").write_text("\n".join(parts), "utf-8")
    table = ["| id | why, and what to do |", "|---|---|"]
    table += [f"| {link(reason)} | {text} |" for reason, text in REASONS.items()]
    (markdown / "reasons.md").write_text("\n".join(table) + "\n", "utf-8")
