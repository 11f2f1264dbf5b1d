"""A page for every rule and reason of the codemod, and the table of all of them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from rules import tab

from migrate_hierarchical.catalogue import REASONS, RULES, UP_REASONS, UP_RULES, Rule
from migrate_hierarchical.catalogue.explanations import EXPLANATIONS, Explanation
from migrate_hierarchical.catalogue.explanations_up import UP_EXPLANATIONS
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import UPSTREAM, Settings, group_of

PAGES = Path(__file__).resolve().parents[1] / "rules"
OTHERS = "[All rules and reports](index.md)"
SOURCES = "tools/migrate-hierarchical/src/migrate_hierarchical/catalogue"


def head(name: str, source: str, summary: str) -> str:
    """The front matter, the title and the line below it. A search finds the guide before a rule."""
    return f"---\nsource: {SOURCES}/{source}\nsearch:\n  boost: 0.5\n---\n\n# {name}\n\n{sentence(summary)}\n"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def reason(name: str) -> str:
    """Its line of `--list-rules`, in which a * is a *."""
    return {**REASONS, **UP_REASONS}[name].replace("*", r"\*")


def silence(heading: str, name: str, comment: str) -> str:
    return (
        f"## {heading}\n\n{comment} For a whole run or project:\n\n"
        f"```bash\nmigrate-hierarchical --ignore {name} src/\n```\n\n"
        f'```toml title="pyproject.toml"\n[tool.migrate-hierarchical]\nignore = ["{name}"]\n```\n'
    )


def kind(rule: Rule) -> str:
    """What a reader has to know first."""
    return "changes results" if rule.changes else "safe"


def opt_in(name: str) -> str:
    """What the pages of the group UP say first."""
    return "Only with `--select UP`. " if group_of(name) == UPSTREAM else ""


def rule_page(rule: Rule) -> str:
    parts = [
        head(rule.id, f"{rule.id.lower()}.py", rule.summary),
        f"Rewrites code; **{kind(rule)}**. {opt_in(rule.id)}{OTHERS}\n",
        f"## Why\n\n{rule.why}",
        "## Example\n",
        tab("Before", rule.before),
        tab("After", rule.after),
        "## What may change\n",
        f"**Unchanged.** {rule.safe}",
    ]
    if rule.changes:
        parts.append("**Changes results.**\n")
        parts += [f"- {textwrap.indent(text, '  ').lstrip()}" for text in rule.changes]
    skip = (
        f"A comment `# noqa: {rule.id}` on the line of the use leaves the use and its import unchanged; a `# noqa` "
        "without ids does not. A file that contains `migrate-hierarchical: skip-file` stays unchanged."
    )
    return "\n".join([*parts, silence("Skip this rule", rule.id, skip)])


def settings_for(name: str) -> Settings:
    """The settings of a run in which a rule or reason takes part."""
    upstream = (*(rule.id for rule in UP_RULES), *UP_REASONS)
    return Settings(select=upstream if group_of(name) == UPSTREAM else ())


def marked(name: str, explanation: Explanation) -> str:
    """The code as the codemod leaves it."""
    result = migrate_bytes(explanation.path, explanation.before.encode(), settings_for(name))
    return (result.new or result.old).decode()


def reason_page(name: str) -> str:
    upstream = name in UP_EXPLANATIONS
    explanation = UP_EXPLANATIONS[name] if upstream else EXPLANATIONS[name]
    parts = [
        head(name, "explanations_up.py" if upstream else "explanations.py", reason(name)),
        f"A report: you have to finish this use by hand, and the exit status is 2. {opt_in(name)}{OTHERS}\n",
        f"## Why it is left\n\n{explanation.why}",
        f"## What to do\n\n{explanation.todo}",
        "## Example\n",
    ]
    if explanation.by_hand:
        parts += [tab("Before", explanation.before), tab("Marked", marked(name, explanation), ".wrap")]
        parts.append(tab("By hand", explanation.by_hand))
    else:
        language = Path(explanation.path).suffix.removeprefix(".")
        parts.append(f'```{language} title="{explanation.path}"\n{explanation.before}```\n')
        path, content = explanation.beside
        if path:
            parts.append(
                f'Another file of the project, which the run is not given:\n\n```py title="{path}"\n{content}```\n'
            )
    comment = f"A comment `# noqa: {name}` on the line of the use silences the report."
    return "\n".join([*parts, silence("Silence it", name, comment)])


REPORT_HEAD = ("| id | why, and what to do |", "|---|---|")


def rows_of(rules: tuple[Rule, ...]) -> list[str]:
    return [
        f"| [{rule.id}]({rule.id}.md) | {sentence(rule.summary)} | {'change' if rule.changes else 'safe'} |"
        for rule in rules
    ]


def report_row(name: str) -> str:
    return f"| [{name}]({name}.md) | {sentence(reason(name))} |"


def index() -> str:
    """The table of all pages."""
    lines = [
        "---\nsource: docs/_generate/rule_pages.py\n---\n",
        "# Rules and reports of the codemod\n",
        "[`migrate-hierarchical`](../migrate.md) rewrites code by its rules. What you have to finish by hand, it marks",
        "with a report. `--list-rules` prints this table; `--select` and `--ignore` take the ids.\n",
        "## Rules\n",
        "| id | what it rewrites | results |",
        "|---|---|---|",
    ]
    lines += rows_of(RULES)
    lines += ["\n## Reports\n", *REPORT_HEAD, *(report_row(name) for name in REASONS)]
    lines += [
        "\n## Code for 0.2.0\n",
        "These rules run [only with `--select UP`](../migrate.md#code-for-020): they change calls that are valid in both",
        "versions.\n",
        "| id | what it rewrites | results |",
        "|---|---|---|",
        *rows_of(UP_RULES),
        "",
        *REPORT_HEAD,
        *(report_row(name) for name in UP_REASONS),
    ]
    return "\n".join(lines) + "\n"


def write(markdown: Path, assets: Path) -> None:
    PAGES.mkdir(exist_ok=True)
    for old in PAGES.glob("*.md"):
        old.unlink()
    (PAGES / "index.md").write_text(index(), "utf-8")
    for rule in (*RULES, *UP_RULES):
        (PAGES / f"{rule.id}.md").write_text(rule_page(rule), "utf-8")
    for name in (*REASONS, *UP_REASONS):
        (PAGES / f"{name}.md").write_text(reason_page(name), "utf-8")
