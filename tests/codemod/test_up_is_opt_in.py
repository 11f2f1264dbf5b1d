"""Without --select UP nothing of that group is done or said; with it, both groups can run at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes, moved_lines
from migrate_hierarchical.settings import Settings, UsageError
from tests.codemod.cases import CASES as OTHER_CASES
from tests.codemod.cases import Case
from tests.codemod.test_up_fixtures import ALL, CASES

HIERARCHICAL = tuple(sorted({"HIER001", "HIER002", "HIER005", "HIER006", "HIER007", "HIER009"}))
BOTH = """\
from dilated_attention_pytorch import (
    BlockSparseRingDilatedAttention,
    HierarchicalConfig,
)

pattern = HierarchicalConfig()
model = BlockSparseRingDilatedAttention([2048, 4096], [1, 2], sparsity_ratio=0.95)
"""
FORMATS = ("text", "json", "sarif", "github")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(list(arguments))
    return status, capsys.readouterr().out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_it_nothing_of_it_is_done(case: Case) -> None:
    """Whatever else is changed: files of 0.2.0 also have imports that the group HIER rewrites."""
    for settings in (Settings(), Settings(select=HIERARCHICAL)):
        result = migrate_bytes(case.path, case.before.encode(), settings)
        assert not [each for each in (*result.rewritten, *result.left) if each.rule.startswith("UP")]
        assert b": UP" not in (result.new or b"")


@pytest.mark.parametrize("format_", FORMATS)
def test_without_it_no_report_names_it(
    format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text(BOTH)
    out = run(capsys, "--check", "--output-format", format_, str(tmp_path))[1]
    assert "HIER002" in out or format_ == "text"
    assert "UP0" not in out
    assert "UP1" not in out


def test_without_it_none_of_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(BOTH)
    code = (
        "import sys\nfrom migrate_hierarchical.cli import main\n"
        f"main(['--jobs', '1', '--check', {str(tmp_path)!r}])\n"
        "print([name for name in sys.modules if name.endswith(('.planner', '.calls')) and '.upstream' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("case", [case for case in OTHER_CASES if case.file != "reports"][::3], ids=str)
def test_it_does_not_disturb_the_other_group(case: Case) -> None:
    """Where the group UP finds nothing, both end as the group HIER alone."""
    before = case.before.encode()
    if migrate_bytes(case.path, before, Settings(select=ALL)).new is not None:
        return
    alone = migrate_bytes(case.path, before, Settings())
    both = migrate_bytes(case.path, before, Settings(select=(*both_ids(), *ALL)))
    assert both.new == alone.new
    mine = [entry for entry in both.rewritten if entry.rule.startswith("HIER")]
    assert [(each.rule, each.line, each.new_line) for each in mine] == [
        (each.rule, each.line, each.new_line) for each in alone.rewritten
    ]


def both_ids() -> tuple[str, ...]:
    return tuple(each for each in IDS if each.startswith("HIER"))


def all_ids() -> list[str]:
    from migrate_hierarchical.report import summaries

    return list(summaries())


IDS = all_ids()


def test_both_groups_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.py"
    file.write_text(BOTH)
    status, out = run(capsys, "--select", "UP,HIER", "--output-format", "json", str(file))
    assert status == 2
    lines = file.read_text().splitlines()
    report = json.loads(out)
    for entry in (*report["rewritten"], *report["left"]):
        line = lines[entry["line"] - 1]
        expected = {
            "UP002": "BlockSparseAttention",
            "UP006": "BlockSparseAttention(",
            "HIER002": "SparsePatternConfig(",
        }
        assert expected.get(entry["rule"], "") in line, entry
    assert {entry["rule"] for entry in report["rewritten"]} == {"UP002", "UP006", "HIER002", "HIER009"}
    assert {entry["rule"] for entry in report["left"]} == {"UP102", "UP104"}
    assert "model = BlockSparseAttention(sparsity_ratio=0.95)" in lines
    again = run(capsys, "--select", "UP,HIER", str(file))
    assert again[0] == 2
    assert file.read_text().splitlines() == lines


def test_lines_of_a_run_that_writes_nothing_are_those_of_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "a.py"
    file.write_text(BOTH)
    out = run(capsys, "--check", "--select", "UP,HIER", "--output-format", "json", str(file))[1]
    report = json.loads(out)
    lines = {entry["rule"]: entry["line"] for entry in (*report["rewritten"], *report["left"])}
    assert (lines["HIER002"], lines["UP006"], lines["UP102"], lines["UP104"]) == (6, 7, 7, 7)


def test_moved_lines_are_found_in_both_directions() -> None:
    old, new = b"a\nb\nc\n", b"a\nx\ny\nb\nc\n"
    assert [moved_lines(old, new)(line) for line in (1, 2, 3)] == [1, 4, 5]
    assert [moved_lines(new, old)(line) for line in (1, 4, 5)] == [1, 2, 3]


def test_the_order_of_the_two_groups_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for order in (["UP", "HIER"], ["HIER", "UP"], ["UP,HIER"]):
        file = tmp_path / f"{'_'.join(order)}.py"
        file.write_text(BOTH)
        for group in order:
            run(capsys, "--select", group, str(file))
        ends.append(file.read_text())
    assert ends[0] == ends[1] == ends[2]


def test_a_member_is_marked_by_one_group_only() -> None:
    source = (
        "from dilated_attention_pytorch import BlockSparseHierarchical\n\n"
        "model = BlockSparseHierarchical([2048], [1])\nprint(model.get_pattern_stats())\n"
    )
    settings = Settings(select=tuple(IDS))
    result = migrate_bytes("x.py", source.encode(), settings)
    assert [entry.rule for entry in result.left] == ["HIER102"]
    assert migrate_bytes("x.py", result.new or b"", settings).new is None


def test_sarif_knows_its_rules_when_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text(BOTH)
    out = run(capsys, "--check", "--select", "UP", "--output-format", "sarif", str(tmp_path))[1]
    document = json.loads(out)["runs"][0]
    rules = document["tool"]["driver"]["rules"]
    assert {"UP002", "UP102"} <= {rule["id"] for rule in rules}
    for result in document["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]


def test_it_can_be_selected_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.py"
    source = "from dilated_attention_pytorch import get_block_sparse_preset as p\nx = p(preset_name='global_local', ring_size=1)\n"
    file.write_text(source)
    assert run(capsys, "--select", "UP005", "--ignore", "UP1xx", str(file))[0] == 0
    assert file.read_text() == source.replace("preset_name", "name")
    assert run(capsys, "--select", "UP0", "--ignore", "UP103", str(file))[0] == 0
    assert "ring_size" not in file.read_text()
    assert run(capsys, "--select", "UP103", "--check", str(file))[0] == 2


@pytest.mark.parametrize("word", ["U", "UPX001", "UP999", "UP0011"])
def test_words_that_name_none_of_its_rules_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--select must name rules"):
        Settings(select=(word,)).with_ids(IDS)


def test_list_of_rules_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--list-rules")[1]
    assert [line.split("  ")[0] for line in out.splitlines()] == IDS
    assert set(ALL) <= set(IDS)


def test_it_looks_at_files_without_a_hierarchical_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text(
        "from dilated_attention_pytorch import SparsePatternConfig\nx = SparsePatternConfig()\n"
    )
    (tmp_path / "b.yaml").write_text("package: dilated_attention_pytorch\nenable_memory_pool: true\n")
    (tmp_path / "c.py").write_text("x = 1\n")
    out = run(capsys, "--select", "UP", "--check", str(tmp_path))[1]
    assert "would rewrite" in out
    assert "3 files scanned, 1 to change" in out
    assert run(capsys, "--check", str(tmp_path))[0] == 0
