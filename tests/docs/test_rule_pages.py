"""The pages of the codemod's rules and reports show what the codemod does."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.catalogue.explanations import EXPLANATIONS
from migrate_hierarchical.catalogue.reasons import REASONS
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.docs.fences import ROOT, Fence, find_python_fences

IDS = [*(rule.id for rule in RULES), *REASONS]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, tmp_path) -> ModuleType:
    """The generator, with its pages in `tmp_path`."""
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    module = importlib.import_module("rule_pages")
    monkeypatch.setattr(module, "PAGES", tmp_path)
    module.write(tmp_path, tmp_path)
    return module


def fences(pages: ModuleType, name: str) -> dict[str, Fence]:
    """The code of a page by its title."""
    found = find_python_fences(pages.PAGES / f"{name}.md")
    return {fence.title: fence for fence in found}


def test_every_rule_and_report_has_a_page_and_a_row_in_the_table(pages: ModuleType) -> None:
    assert {path.stem for path in pages.PAGES.glob("HIER*.md")} == set(IDS)
    table = (pages.PAGES / "index.md").read_text("utf-8")
    assert all(f"| [{name}]({name}.md) | " in table for name in IDS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_before_becomes_after(pages: ModuleType, rule) -> None:
    code = fences(pages, rule.id)
    result = migrate_bytes("example.py", code["Before"].code.encode(), Settings())
    assert result.new is not None
    assert result.new.decode() == code["After"].code
    assert rule.id in {entry.rule for entry in result.rewritten}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_says_whether_results_change(pages: ModuleType, rule) -> None:
    """They do where a configuration was replaced."""
    result = migrate_bytes("example.py", rule.before.encode(), Settings())
    of_this = [entry for entry in result.rewritten if entry.rule == rule.id]
    assert any(entry.patterns for entry in of_this) == bool(rule.changes)
    page = (pages.PAGES / f"{rule.id}.md").read_text("utf-8")
    assert ("**changes results**" in page) == bool(rule.changes)
    assert ("**safe**" in page) == (not rule.changes)


@pytest.mark.parametrize("name", [name for name in EXPLANATIONS if EXPLANATIONS[name].by_hand])
def test_before_is_marked_with_the_reason_of_the_page(pages: ModuleType, name: str) -> None:
    code = fences(pages, name)
    assert code["Before"].code == EXPLANATIONS[name].before
    assert f"# TODO(migrate-hierarchical): {name} {REASONS[name]}" in code["Marked"].code


@pytest.mark.parametrize("name", [name for name in EXPLANATIONS if EXPLANATIONS[name].by_hand])
def test_code_finished_by_hand_runs_and_is_left_alone(pages: ModuleType, name: str) -> None:
    code = fences(pages, name)
    code["By hand"].run({"__name__": "example"})
    result = migrate_bytes("example.py", code["By hand"].code.encode(), Settings())
    assert (result.new, result.left) == (None, [])
    if name == "HIER116":  # a test that expects the failure
        code["Before"].run({"__name__": "example"})
        return
    with pytest.raises((ImportError, NameError, ValueError)):
        code["Before"].run({"__name__": "example"})


@pytest.mark.parametrize("name", IDS)
def test_a_page_says_how_to_leave_it_out(pages: ModuleType, name: str) -> None:
    page = (pages.PAGES / f"{name}.md").read_text("utf-8")
    assert f"--ignore {name}" in page
    assert f"# noqa: {name}" in page
    assert ("skip-file" in page) == (name not in REASONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_use_is_kept_by_a_comment_with_the_id_and_by_skip_file(rule) -> None:
    """As the pages say."""
    lines = rule.before.splitlines()
    for ids in ({rule.id}, {each.id for each in RULES}):
        noqa = "\n".join(f"{line}  # noqa: {', '.join(sorted(ids))}" if line else "" for line in lines)
        left = {entry.rule for entry in migrate_bytes("example.py", noqa.encode(), Settings()).rewritten}
        assert rule.id == "HIER009" or rule.id not in left  # other rules bring their imports
    assert not left, "with every id, nothing is rewritten"
    bare = "\n".join(f"{line}  # noqa" if line else "" for line in lines)
    assert migrate_bytes("example.py", bare.encode(), Settings()).new is not None
    skipped = f"# migrate-hierarchical: skip-file\n{rule.before}"
    assert migrate_bytes("example.py", skipped.encode(), Settings()).new is None
