"""The rules and reasons of the group UP: code before and after."""

from __future__ import annotations

import ast
import runpy

import pytest

from migrate_hierarchical.catalogue import UP_REASONS, UP_RULES
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.cases import FIXTURES, Case, load
from tests.codemod.test_fixtures import comments

CASES = [case for file in sorted((FIXTURES / "up").glob("*.txt")) for case in load(file)]
ALL = tuple([rule.id for rule in UP_RULES] + list(UP_REASONS))
SETTINGS = Settings(select=ALL)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert result.error is None
    assert (result.new or case.before.encode()).decode() == case.after
    ast.parse(case.after)
    again = migrate_bytes(case.path, case.after.encode(), SETTINGS)
    assert again.new is None, "the second run changed something"
    assert {entry.rule for entry in again.left} == {entry.rule for entry in result.left}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_comments_are_kept(case: Case) -> None:
    assert comments(case.before) == comments(case.after)


@pytest.mark.parametrize("case", [case for case in CASES if case.runs], ids=str)
def test_result_runs_against_the_package(case: Case, tmp_path) -> None:
    pytest.importorskip("dilated_attention_pytorch")
    (tmp_path / "migrated.py").write_text(case.after, "utf-8")
    runpy.run_path(str(tmp_path / "migrated.py"), run_name="migrated")


@pytest.mark.parametrize("case", [case for case in CASES if case.file == "reports"], ids=str)
def test_reason_is_given(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert case.name.split()[0] in {entry.rule for entry in result.left}
    for entry in result.left:
        assert case.before.splitlines()[entry.line - 1].strip(), "the line of the report is that of the use"
        assert entry.new_line is not None
        assert case.after.splitlines()[entry.new_line - 1].strip()


@pytest.mark.parametrize("case", [case for case in CASES if case.file == "untouched"], ids=str)
def test_untouched_means_no_report_either(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert (result.new, result.left, result.rewritten) == (None, [], [])


def test_every_rule_and_reason_has_cases() -> None:
    written = {
        entry.rule
        for case in CASES
        for entry in migrate_bytes(case.path, case.before.encode(), SETTINGS).rewritten
    }
    assert written == {rule.id for rule in UP_RULES}
    assert {case.name.split()[0] for case in CASES if case.file == "reports"} == set(UP_REASONS)


@pytest.mark.parametrize("rule", UP_RULES, ids=lambda rule: rule.id)
def test_example_of_the_rule(rule) -> None:
    result = migrate_bytes("example.py", rule.before.encode(), SETTINGS)
    assert result.new is not None
    assert result.new.decode() == rule.after
    assert rule.id in {entry.rule for entry in result.rewritten}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_one_by_one_end_the_same(case: Case) -> None:
    data = case.before.encode()
    for rule in UP_RULES:
        data = migrate_bytes(case.path, data, Settings(select=(rule.id,))).new or data
    assert data.decode() == case.after
