"""Reports that a person silences: no mark, no entry, exit status 0; what is written is not concerned."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings, UsageError
from tests.codemod.cases import CASES, Case

FROM = "from dilated_attention_pytorch import "
CHOICE = (
    FROM
    + 'create_block_sparse_attention\n\nNAMES = ["hierarchical"]\nmodel = create_block_sparse_attention(name){comment}\n'
)
SUBCLASS = (
    FROM
    + "BlockSparseHierarchical{0}\n\n\nclass A(  {1}\n    BlockSparseHierarchical,  {2}\n):  {3}\n    pass  {4}\n"
)


def rules(text: str, path: str = "x.py", **settings) -> list[str]:
    result = migrate_bytes(path, text.encode(), Settings(**settings))
    assert result.error is None
    new = (result.new or text.encode()).decode()
    marked = new.count("# TODO(migrate-hierarchical)")
    assert marked == len(result.left) or path != "x.py"
    again = migrate_bytes(path, new.encode(), Settings(**settings))
    assert (again.new, len(again.left)) == (None, len(result.left))
    return [entry.rule for entry in result.left]


@pytest.mark.parametrize(
    ("comment", "silent"),
    [
        ("  # noqa: HIER105", True),
        ("  # NOQA:hier105", True),
        ("  # noqa : HIER105", True),
        ("  # noqa: E501, HIER105", True),
        ("  # noqa: E501 HIER105", True),
        ("  # type: ignore  # noqa: HIER105", True),
        ("  # noqa: HIER105 chosen in the settings", True),
        ("  # noqa", True),
        ("  # noqa because of the settings", True),
        ("  # noqa: E501", False),
        ("  # noqa: HIER101", False),
        ("  # noqa:", False),
        ("  # no quality assurance", False),
        ("", False),
    ],
)
def test_comment_on_the_line(comment: str, silent: bool) -> None:
    assert rules(CHOICE.format(comment=comment)) == ([] if silent else ["HIER105"])


@pytest.mark.parametrize("place", range(5))
def test_first_and_last_line_of_a_statement_and_that_of_the_use(place: int) -> None:
    comments = ["# noqa: HIER101" if i == place else "# text" for i in range(5)]
    assert rules(SUBCLASS.format(*comments)) == ([] if place in (1, 2, 3) else ["HIER101"])


def test_a_mark_of_an_earlier_run_is_silenced_too() -> None:
    text = CHOICE.format(comment="")
    marked = migrate_bytes("x.py", text.encode(), Settings()).new
    assert marked is not None
    assert migrate_bytes("x.py", marked, Settings(ignore=("HIER105",))).left == []
    silenced = marked.replace(b"(name)", b"(name)  # noqa: HIER105")
    result = migrate_bytes("x.py", silenced, Settings())
    assert (result.new, result.left) == (None, [])


def test_rewriting_goes_on_beside_a_comment() -> None:
    text = FROM + "HierarchicalConfig  # noqa\n\nconfig = HierarchicalConfig()  # noqa\n"
    new = migrate_bytes("x.py", text.encode(), Settings()).new
    assert new is not None
    assert new.count(b"SparsePatternConfig") == 2
    assert new.count(b"# noqa") == 2


def test_in_pages_only_comments_with_ids_count() -> None:
    page = f"```python\n{CHOICE}```\n"
    assert rules(page.format(comment="  # noqa"), "a.md") == ["HIER105"]
    assert rules(page.format(comment="  # noqa: HIER105"), "a.md") == []
    shell = '```bash\npython -c "import dilated_attention_pytorch as d; d.HierarchicalConfig()"{}\n```\n'
    assert rules(shell.format(""), "a.md") == ["HIER103"]
    assert rules(shell.format("  # noqa: HIER103"), "a.md") == []


@pytest.mark.parametrize("path", ["a.yaml", "a.toml", "a.sh", "a.cfg"])
def test_in_other_files(path: str) -> None:
    text = "x: BlockSparseHierarchical{}\n"
    assert rules(text.format(""), path) == ["HIER120"]
    assert rules(text.format("  # noqa: HIER120"), path) == []
    assert rules(text.format(""), path, ignore=("HIER120",)) == []


REPORTED = [case for case in CASES if case.file == "reports"]


@pytest.mark.parametrize("case", REPORTED, ids=str)
def test_every_report_can_be_ignored_for_good(case: Case) -> None:
    found = migrate_bytes(case.path, case.before.encode(), Settings()).left
    ignore = tuple({entry.rule for entry in found})
    result = migrate_bytes(case.path, case.before.encode(), Settings(ignore=ignore))
    assert result.left == []
    assert "# TODO(" not in (result.new or b"").decode().replace(case.before, "")
    again = migrate_bytes(case.path, result.new or case.before.encode(), Settings(ignore=ignore))
    assert (again.new, again.left) == (None, [])


@pytest.mark.parametrize("case", REPORTED, ids=str)
def test_every_report_can_be_silenced_on_its_line(case: Case) -> None:
    lines = case.before.splitlines()
    for entry in migrate_bytes(case.path, case.before.encode(), Settings()).left:
        lines[entry.line - 1] += f"  # noqa: {entry.rule}"
    text = "\n".join(lines) + "\n"
    if "\\  # noqa" in text or '"""  # noqa' in text:
        pytest.skip("no place for a comment")
    assert migrate_bytes(case.path, text.encode(), Settings()).left == []


# ---- ids on the command line and in the settings


def test_ignored_on_the_command_line_and_in_the_settings(tmp_path, capsys) -> None:
    path = tmp_path / "a.py"
    path.write_text(CHOICE.format(comment=""))
    for ids in ("HIER105", "hier105", "HIER1xx", "HIER1", "HIER101,HIER105"):
        assert main(["--ignore", ids, str(tmp_path)]) == 0
    assert path.read_text() == CHOICE.format(comment="")
    (tmp_path / "pyproject.toml").write_text('[tool.migrate-hierarchical]\nignore = ["HIER105"]\n')
    assert main([str(tmp_path)]) == 0
    (tmp_path / "pyproject.toml").unlink()
    assert main([str(tmp_path)]) == 2
    assert main(["--ignore", "HIER105", str(tmp_path)]) == 0, "its mark is silent too"


def test_select_of_rules_leaves_reports_on() -> None:
    text = CHOICE.format(comment="")
    assert rules(text, select=("HIER005",)) == ["HIER105"]
    assert rules(text, select=("HIER005", "HIER101")) == []
    assert rules(text, select=("HIER005", "HIER105")) == ["HIER105"]


def test_unknown_ids_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="got 'HIER0O1'; did you mean HIER001"):
        Settings(ignore=("HIER0O1",)).with_ids(["HIER001", "HIER113"])


GONE = "dilated_attention_pytorch.block_sparse_factory"


@pytest.mark.parametrize(
    "text",
    [
        f"from {GONE} import create_adaptive_block_sparse, SparsePatternConfig  # noqa: HIER114\n",
        f"from {GONE} import SparsePatternConfig, create_adaptive_block_sparse  # noqa: HIER114\n",
        f"from {GONE} import (\n    SparsePatternConfig,\n    create_adaptive_block_sparse,  # noqa: HIER114\n)\n",
        f"from {GONE} import (\n    create_adaptive_block_sparse, x,  # noqa: HIER114\n    SparsePatternConfig,\n)\n",
        f"from {GONE} import (\n    create_adaptive_block_sparse,\n    SparsePatternConfig,\n)  # noqa: HIER114\n",
    ],
)
def test_comment_stays_with_the_name_of_an_import_that_is_split(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert main([str(file)]) == 0
    new = file.read_text()
    assert "from dilated_attention_pytorch import" in new
    assert main([str(file)]) == 0
    assert file.read_text() == new


def test_comment_of_one_name_is_not_for_the_others(tmp_path: Path, capsys) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        f"from {GONE} import (\n    create_adaptive_block_sparse,  # noqa: HIER114\n    other,\n)\n"
    )
    assert main([str(file)]) == 2
    report = capsys.readouterr().out
    assert "other of" in report
    assert "adaptive" not in report
