"""A run that writes reports the lines of the files as they are written."""

from __future__ import annotations

import json
import re

import pytest

from migrate_hierarchical.documents.result import Result
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.cases import CASES, Case

NEW = re.compile(r"create_block_sparse_attention|SparsePatternConfig|get_block_sparse_preset|= make\(")
MIGRATED = [case for case in CASES if case.before != case.after and case.path.endswith(".py")]
FEW = MIGRATED[::11]


def migrated(path: str, source: str) -> tuple[Result, list[str]]:
    result = migrate_bytes(path, source.encode(), Settings())
    assert result.new is not None, result.error
    return result, result.new.decode().split("\n")


def check_places(path: str, source: str) -> None:
    """What is left stands where a second run finds it or below its mark, and new code where it is said to be."""
    result, lines = migrated(path, source)
    assert result.new is not None
    again = {(entry.rule, entry.line) for entry in migrate_bytes(path, result.new, Settings()).left}
    for entry in result.left:
        assert entry.new_line is not None
        assert {(entry.rule, entry.new_line), (entry.rule, entry.new_line - 1)} & again, entry
    for entry in result.rewritten:
        if entry.rule not in ("HIER008", "HIER009"):
            assert entry.new_line is not None
            assert NEW.search(lines[entry.new_line - 1]), (entry, lines[entry.new_line - 1])


@pytest.mark.parametrize("case", MIGRATED, ids=str)
def test_places_in_python(case: Case) -> None:
    check_places(case.path, case.before)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_places_in_a_page(case: Case) -> None:
    check_places(
        "page.md", f"# Title\n\n```python\n{case.before}```\n\nText.\n\n```python\n{case.before}```\n"
    )


@pytest.mark.parametrize("case", FEW, ids=str)
def test_places_in_a_notebook(case: Case) -> None:
    cells = [
        {"cell_type": "code", "source": text.splitlines(keepends=True)}
        for text in ("%matplotlib inline\n", case.before, "!nvidia-smi\n" + case.before)
    ]
    check_places("a.ipynb", json.dumps({"cells": cells}, indent=1))


@pytest.mark.parametrize("case", FEW, ids=str)
def test_places_in_docstrings(case: Case) -> None:
    fence = (
        "    ```python\n"
        + "".join(f"    {line}".rstrip() + "\n" for line in case.before.splitlines())
        + "    ```\n"
    )
    if '"""' in case.before or "\\" in case.before or ">>>" in case.before:
        pytest.skip("no example of a docstring")
    function = 'def f():\n    """Do.\n\n' + fence + fence + '    """\n\n\n'
    check_places("a.py", function + case.before + "\n\n" + function.replace("def f", "def g"))


IMPORT = "from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig"


def test_places_of_findings_on_one_line_that_is_rewritten() -> None:
    result, lines = migrated(
        "a.py",
        f"{IMPORT}\ndef f(c: HierarchicalConfig): return c.num_levels, c.level_configs\n"
        'def g(m: "BlockSparseHierarchical"): return m.get_pattern_stats(1024)\n',
    )
    found = {entry.detail: lines[(entry.new_line or 0) - 1][:5] for entry in result.left}
    assert found == {".num_levels": "def f", ".level_configs": "def f", ".get_pattern_stats": "def g"}


def test_places_of_uses_on_lines_below_one_another() -> None:
    result, lines = migrated(
        "a.py", f"{IMPORT}\n" + "".join(f"v{i} = HierarchicalConfig()\n" for i in range(5))
    )
    uses = [lines[(entry.new_line or 0) - 1] for entry in result.rewritten if entry.rule == "HIER002"]
    assert uses == [f"v{i} = SparsePatternConfig(" for i in range(5)]


def test_places_of_statements_behind_a_semicolon() -> None:
    result, lines = migrated("a.py", f"import os; {IMPORT}; c = HierarchicalConfig()\n\nd = c.num_levels\n")
    (left,) = result.left
    assert lines[(left.new_line or 0) - 1] == "d = c.num_levels"
    assert [entry.new_line for entry in result.rewritten] == [1, 1]
