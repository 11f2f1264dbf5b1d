"""The pages of the rules and reports of the group UP show what the codemod does."""

from __future__ import annotations

from types import ModuleType

import pytest

from migrate_hierarchical.catalogue import UP_REASONS, UP_RULES
from migrate_hierarchical.catalogue.explanations_up import UP_EXPLANATIONS
from migrate_hierarchical.engine import migrate_bytes
from tests.codemod.test_up_fixtures import SETTINGS
from tests.docs.test_rule_pages import fences, pages

IDS = [*(rule.id for rule in UP_RULES), *UP_REASONS]
NOT_YET = {"create_multihead_block_sparse": "UP106"}

__all__ = ["pages"]


def test_every_rule_and_report_has_a_page_and_a_row_in_the_table(pages: ModuleType) -> None:
    assert {path.stem for path in pages.PAGES.glob("UP*.md")} == set(IDS)
    table = (pages.PAGES / "index.md").read_text("utf-8")
    assert all(f"| [{name}]({name}.md) | " in table for name in IDS)


@pytest.mark.parametrize("rule", UP_RULES, ids=lambda rule: rule.id)
def test_before_becomes_after(pages: ModuleType, rule) -> None:
    code = fences(pages, rule.id)
    result = migrate_bytes("example.py", code["Before"].code.encode(), SETTINGS)
    assert result.new is not None
    assert result.new.decode() == code["After"].code


@pytest.mark.parametrize("name", UP_EXPLANATIONS)
def test_before_is_marked_with_the_reason_of_the_page(pages: ModuleType, name: str) -> None:
    code = fences(pages, name)
    assert code["Before"].code == UP_EXPLANATIONS[name].before
    assert f"# TODO(migrate-hierarchical): {name} " in code["Marked"].code


@pytest.mark.parametrize("name", UP_EXPLANATIONS)
def test_code_finished_by_hand_runs_and_is_left_alone(pages: ModuleType, name: str) -> None:
    import dilated_attention_pytorch

    code = fences(pages, name)["By hand"]
    result = migrate_bytes("example.py", code.code.encode(), SETTINGS)
    assert (result.new, result.left) == (None, [])
    missing = [new for new in NOT_YET if new in code.code and new not in dilated_attention_pytorch.__all__]
    if missing:
        pytest.skip(f"{missing} do not exist yet")
    code.run({"__name__": "example"})


@pytest.mark.parametrize("name", IDS)
def test_a_page_says_how_to_leave_it_out_and_that_it_is_opt_in(pages: ModuleType, name: str) -> None:
    page = (pages.PAGES / f"{name}.md").read_text("utf-8")
    assert f"--ignore {name}" in page
    assert f"# noqa: {name}" in page
    assert "Only with `--select UP`." in page
    assert ("skip-file" in page) == (name not in UP_REASONS)


@pytest.mark.parametrize("rule", UP_RULES, ids=lambda rule: rule.id)
def test_a_use_is_kept_by_a_comment_with_the_id(rule) -> None:
    lines = rule.before.splitlines()
    noqa = "\n".join(f"{line}  # noqa: {rule.id}" if line else "" for line in lines)
    rewritten = migrate_bytes("example.py", noqa.encode(), SETTINGS).rewritten
    assert rule.id not in {entry.rule for entry in rewritten}
