"""Every rule, every reason and every trap: code before and after."""

from __future__ import annotations

import ast
import io
import runpy
import tokenize
from collections import Counter

import pytest

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.catalogue.markdown import rules_as_markdown
from migrate_hierarchical.catalogue.reasons import REASONS
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.cases import CASES, FIXTURES, Case

SETTINGS = Settings()


def comments(source: str) -> Counter[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return Counter(text for text in found if "TODO(migrate-hierarchical)" not in text)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert result.error is None
    assert (result.new or case.before.encode()).decode() == case.after
    ast.parse(case.after)
    again = migrate_bytes(case.path, case.after.encode(), SETTINGS)
    assert again.new is None, "the second run changed something"
    assert {entry.rule for entry in again.left} == {entry.rule for entry in result.left}


@pytest.mark.parametrize("case", [case for case in CASES if case.file != "hier009"], ids=str)
def test_comments_are_kept(case: Case) -> None:
    assert comments(case.before) == comments(case.after)


@pytest.mark.parametrize("case", [case for case in CASES if case.file == "hier009"], ids=str)
def test_only_comments_of_imports_that_go_are_lost(case: Case) -> None:
    lost = comments(case.before) - comments(case.after)
    lines = [line for line in case.before.splitlines() if any(text in line for text in lost)]
    assert all("import" in line or line.strip().split(",")[0].isidentifier() for line in lines)
    assert not comments(case.after) - comments(case.before)


@pytest.mark.parametrize("case", [case for case in CASES if case.runs], ids=str)
def test_result_runs_against_the_package(case: Case, tmp_path) -> None:
    pytest.importorskip("dilated_attention_pytorch")
    (tmp_path / "migrated.py").write_text(case.after, "utf-8")
    runpy.run_path(str(tmp_path / "migrated.py"), run_name="migrated")


@pytest.mark.parametrize("case", [case for case in CASES if case.file == "reports"], ids=str)
def test_reason_is_given(case: Case) -> None:
    expected = case.name.split()[0]
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert expected in {entry.rule for entry in result.left}
    for entry in result.left:
        line = case.before.splitlines()[entry.line - 1]
        assert line.strip(), "the line of the report is that of the use"
    assert "TODO(migrate-hierarchical)" in case.after


@pytest.mark.parametrize("case", [case for case in CASES if case.file == "untouched"], ids=str)
def test_untouched_means_no_report_either(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    assert (result.new, result.left, result.rewritten) == (None, [], [])


def test_every_rule_and_reason_has_cases() -> None:
    assert len(CASES) >= 150
    rules = {case.file.upper() for case in CASES}
    reported = {case.name.split()[0] for case in CASES if case.file == "reports"}
    assert {rule.id for rule in RULES} <= rules
    # HIER115 needs several files, HIER120 other kinds of files: they have their own tests
    assert set(REASONS) - {"HIER115", "HIER120"} <= reported


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_example_of_the_rule(rule) -> None:
    result = migrate_bytes("example.py", rule.before.encode(), SETTINGS)
    assert result.new is not None
    assert result.new.decode() == rule.after
    assert rule.id in {entry.rule for entry in result.rewritten}


def test_readme_shows_the_rules() -> None:
    readme = FIXTURES.parents[2] / "tools/migrate-hierarchical/README.md"
    text = readme.read_text("utf-8")
    begin = text.index("<!-- rules:begin")
    shown = text[text.index("\n", begin) + 1 : text.index("<!-- rules:end")]
    assert shown == rules_as_markdown(), "write it again: python -m migrate_hierarchical.catalogue.markdown"


def test_removal_notice_becomes_its_own_replacement() -> None:
    before = (
        "from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig\n"
        "model = BlockSparseHierarchical(segment_lengths=[2048, 4096], dilation_rates=[1, 2], "
        "hierarchical_config=HierarchicalConfig())\n"
    )
    after = """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig
model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,  # keeps 1% of the blocks, at least 2 per row (causal: 3)
        dilation_rates=[1, 2, 4, 8],  # distances in blocks; sparse rows share them out
    ),
)
"""
    result = migrate_bytes("notice.py", before.encode(), Settings(explain=True))
    assert result.new is not None
    assert result.new.decode() == after


def test_nested_fstrings_are_left() -> None:
    source = (
        b"from dilated_attention_pytorch import BlockSparseHierarchical as B\n"
        b"""x = f"{f'{B([2048], [1])}'}"\n"""
    )
    result = migrate_bytes("x.py", source, SETTINGS)
    assert [entry.rule for entry in result.left] == ["HIER112"]
    again = migrate_bytes("x.py", result.new or b"", SETTINGS)
    assert again.new is None


@pytest.mark.parametrize(("rule", "kept"), [("HIER001", "Hierarchical("), ("HIER002", "HierarchicalConfig(")])
def test_a_rule_that_is_ignored_changes_nothing(rule: str, kept: str) -> None:
    source = (
        b"from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig\n"
        b"model = BlockSparseHierarchical([2048], [1])\nconfig = HierarchicalConfig()\n"
    )
    result = migrate_bytes("x.py", source, Settings(ignore=(rule,)))
    assert result.new is not None
    assert kept in result.new.decode()
    assert rule not in {entry.rule for entry in result.rewritten}


def test_options_of_new_patterns() -> None:
    source = b"from dilated_attention_pytorch import HierarchicalConfig\nconfig = HierarchicalConfig()\n"
    result = migrate_bytes("x.py", source, Settings(sparsity_ratio=0.05, dilation_rates=(1, 3)))
    assert result.new is not None
    assert b"sparsity_ratio=0.05,\n    dilation_rates=[1, 3],\n" in result.new


FIRST = "from dilated_attention_pytorch import "
WRITTEN = [
    (
        "BlockSparseHierarchical\nx = BlockSparseHierarchical([2048], [1])",
        [("default", 64, 0.01, 64)],
    ),
    (
        "HierarchicalConfig\nx = HierarchicalConfig(level_configs=[{'stride': 64, 'window_size': -1}])",
        [("custom", 64, 0.01, 64)],
    ),
    (
        "HierarchicalConfig\nx = HierarchicalConfig(level_configs=levels)",
        [("default (level_configs not literal)", 64, 0.01, 64)],
    ),
    (
        "get_hierarchical_presets\nx = get_hierarchical_presets()['fine_grained']",
        [("fine_grained", 64, 0.01, 64)],
    ),
    (
        "get_hierarchical_presets\nx = get_hierarchical_presets()[name]",
        [("default (name of the preset not literal)", 64, 0.01, 64)],
    ),
    (
        "get_hierarchical_presets\nx = get_hierarchical_presets()",
        [(name, 64, 0.01, 64) for name in ("standard", "fine_grained", "long_range", "ultra_sparse")],
    ),
    (
        "create_hierarchical_block_sparse\nx = create_hierarchical_block_sparse('long_range', block_size=48)",
        [("long_range", 48, 0.01, 64)],
    ),
    (
        "create_hierarchical_attention, SparsePatternConfig\n"
        "x = create_hierarchical_attention(512, 8, sparse_config=SparsePatternConfig(block_size=128))",
        [("default", 128, 0.01, 128)],
    ),
    (
        "create_block_sparse_attention\n"
        "x = create_block_sparse_attention('hierarchical', sparsity_ratio=0.05, block_size=size)",
        [("default (block_size not literal)", 64, 0.05, 64)],
    ),
    (
        "create_block_sparse_attention\nx = create_block_sparse_attention('hierarchical', sparsity_ratio=0.5)",
        [("default", 64, 0.01, 64)],
    ),
    (
        "get_block_sparse_preset\nx = get_block_sparse_preset('hierarchical_fine')",
        [("fine_grained", 64, 0.01, 64)],
    ),
    (
        "SparsePatternConfig\n"
        "x = SparsePatternConfig(pattern_type='hierarchical', sparsity_ratio=0.02, block_size=32)",
        [("default", 32, 0.02, 32)],
    ),
    (
        "BlockSparseHierarchical, HierarchicalConfig\nc = HierarchicalConfig()\n"
        "x = BlockSparseHierarchical([2048], [1], hierarchical_config=c)",
        [("default", 64, 0.01, 64)],
    ),
    (
        "BlockSparseHierarchical\n"
        "def f(c=None):\n    return BlockSparseHierarchical([2048], [1], hierarchical_config=None)",
        [("default", 64, 0.01, 64)],
    ),
]


@pytest.mark.parametrize(("source", "expected"), WRITTEN)
def test_every_pattern_that_is_written_is_compared(source: str, expected: list[tuple]) -> None:
    result = migrate_bytes("x.py", (FIRST + source + "\n").encode(), SETTINGS)
    assert result.new is not None
    found = [pattern for entry in result.rewritten for pattern in entry.patterns]
    assert [(each.old, each.old_block_size, each.ratio, each.block_size) for each in found] == expected
    assert {each.rates for each in found} == {(1, 2, 4, 8)}


@pytest.mark.parametrize("case", [case for case in CASES if "pattern_type=" in case.after], ids=str)
def test_no_pattern_is_written_without_a_comparison(case: Case) -> None:
    result = migrate_bytes(case.path, case.before.encode(), SETTINGS)
    compared = sum(len(entry.patterns) for entry in result.rewritten)
    code = "".join(line for line in case.after.splitlines(keepends=True) if "# TODO(" not in line)
    written = code.count("dilated_sparse") - case.before.count("dilated_sparse")
    assert compared == written + 3 * code.count("for name in (")  # a dictionary of the four presets
