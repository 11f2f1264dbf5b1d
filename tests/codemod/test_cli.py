"""The command line as its users call it: whole processes, files on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.cli import main

OLD = (
    "from dilated_attention_pytorch import BlockSparseHierarchical\n"
    "\n"
    "model = BlockSparseHierarchical([2048, 4096], [1, 2])\n"
)
NOT_CAUSAL = (
    "at 16,384 tokens, not causal: 5,858 blocks (8.9 %), reach 16,320 tokens, 5 layers to full coverage -> "
    "655 blocks (1.0 %), reach 512 tokens, 110 layers to full coverage\n"
)
CAUSAL = (
    "at 16,384 tokens, causal: 2,939 blocks (8.9 %), reach 15,360 tokens, 5 layers to full coverage -> "
    "765 blocks (2.3 %), reach 512 tokens, 36 layers to full coverage\n"
)
FLOOR = (
    "at 16,384 tokens, causal: the floor of 3 blocks per row decides, not sparsity_ratio: 765 blocks (2.3 %), "
    "not the 328 of 1 %; the ratio decides from 38,209 tokens on\n"
)


def figures(blocks: int, available: int, reach: int, layers: int) -> dict[str, object]:
    return {
        "seq_len": 16_384,
        "blocks": blocks,
        "density": blocks / available,
        "reach": reach,
        "full_coverage": True,
        "layers": layers,
        "more_layers": False,
    }


SIDES = {
    False: {
        "before": figures(5_858, 256 * 256, 16_320, 5),
        "after": figures(655, 256 * 256, 512, 110)
        | {"min_blocks": 2, "floor_decides": False, "ratio_decides_from": None},
    },
    True: {
        "before": figures(2_939, 128 * 257, 15_360, 5),
        "after": figures(765, 128 * 257, 512, 36)
        | {"min_blocks": 3, "floor_decides": True, "ratio_decides_from": 38_209},
    },
}
LEFT = "from dilated_attention_pytorch import BlockSparseHierarchical\n\n\nclass A(BlockSparseHierarchical): ...\n"


def run(*arguments: str | Path, cwd: Path | None = None, stdin: bytes | None = None):
    command = [sys.executable, "-m", "migrate_hierarchical", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/old.py").write_text(OLD)
    (tmp_path / "src/other.py").write_text("x = 1\n")
    return tmp_path


def test_rewrites_then_has_nothing_left(tree: Path) -> None:
    first = run("src", cwd=tree)
    assert first.returncode == 0, first.stderr
    text = (tree / "src/old.py").read_text()
    assert "create_block_sparse_attention(" in text
    out = first.stdout.decode()
    assert "rewrote src/old.py" in out
    assert "2 files scanned, 1 changed, 0 left to a person" in out
    assert "default 8.9 % -> 1.0 %: 8.9x fewer blocks" in out
    assert "src/old.py:3: sparsity_ratio 0.01, dilation_rates 1, 2, 4, 8, block_size 64" in out
    assert NOT_CAUSAL in out
    assert CAUSAL in out
    assert FLOOR in out
    second = run("src", cwd=tree)
    assert second.returncode == 0
    assert (tree / "src/old.py").read_text() == text


def test_check_names_files_and_writes_nothing(tree: Path) -> None:
    done = run("--check", "src", cwd=tree)
    assert done.returncode == 1
    assert "would rewrite src/old.py" in done.stdout.decode()
    assert (tree / "src/old.py").read_text() == OLD


def test_check_and_diff_together_are_the_diff(tree: Path) -> None:
    both, diff = run("--check", "--diff", "src", cwd=tree), run("--diff", "src", cwd=tree)
    assert (both.returncode, both.stdout, both.stderr) == (1, diff.stdout, diff.stderr)
    assert b"would rewrite src/old.py" in both.stderr
    assert (tree / "src/old.py").read_text() == OLD


@pytest.mark.parametrize(
    "old",
    [
        OLD.encode(),
        OLD.encode().rstrip(),
        OLD.encode().replace(b"\n", b"\r\n"),
        b"x = 1\n\x0c\n" + OLD.encode() + "name = 'a\u2028b'\n".encode(),
        b"# coding: latin-1\nname = '\xe9'\n" + OLD.encode(),
    ],
    ids=["plain", "no newline at the end", "crlf", "form feed and line separator", "latin-1"],
)
def test_diff_can_be_applied(tree: Path, old: bytes) -> None:
    (tree / "src/old.py").write_bytes(old)
    done = run("--diff", "src", cwd=tree)
    assert done.returncode == 1
    assert (tree / "src/old.py").read_bytes() == old
    assert b"\x1b" not in done.stdout
    (tree / "change.diff").write_bytes(done.stdout)
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "apply", "change.diff"], cwd=tree, check=True)
    applied = (tree / "src/old.py").read_bytes()
    (tree / "src/old.py").write_bytes(old)
    run("src", cwd=tree)
    assert (tree / "src/old.py").read_bytes() == applied


def test_stdin_to_stdout() -> None:
    done = run("-", stdin=OLD.encode().replace(b"\n", b"\r\n"))
    assert done.returncode == 0
    assert done.stdout.count(b"\r\n") == done.stdout.count(b"\n") > 3
    same = run("-", stdin=b"x = 1  # \xe9 is not UTF-8\n")
    assert (same.returncode, same.stdout) == (0, b"x = 1  # \xe9 is not UTF-8\n")


def test_stdin_with_a_name() -> None:
    done = run("-", "--stdin-filename", "page.md", stdin=b"```python\n" + OLD.encode() + b"```\n")
    assert done.stdout.startswith(b"```python\nfrom dilated_attention_pytorch import create_")


def test_uses_left_give_status_2(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(LEFT)
    done = run(tmp_path)
    assert done.returncode == 2
    assert "a.py:5: HIER101 subclass of a removed class" in done.stdout.decode()
    assert "# TODO(migrate-hierarchical): HIER101" in (tmp_path / "a.py").read_text()
    again = (tmp_path / "a.py").read_text()
    assert run(tmp_path).returncode == 2
    assert (tmp_path / "a.py").read_text() == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PATH is missing"),
        (["--sparsity-ratio", "0", "x"], "--sparsity-ratio must be above 0 and at most 1, got 0"),
        (["--sparsity-ratio", "1.5", "x"], "got 1.5"),
        (["--dilation-rates", "1,0", "x"], "--dilation-rates must be integers of at least 1"),
        (["--dilation-rates", "a", "x"], "must be integers such as 1,2,4,8, got 'a'"),
        (["--select", "HIER999", "x"], "--select must name rules of --list-rules"),
        (["--seq-len", "8", "x"], "--seq-len must be at least 64, got 8"),
        (["--jobs", "-1", "x"], "--jobs must be at least 0"),
        (["-", "x"], "- cannot be combined with other paths"),
        (["--output-format", "xml", "x"], "invalid choice: 'xml'"),
        (["--output-format", "sarfi", "x"], "; did you mean sarif?"),
        (["--sarif", "x"], "; did you mean --output-format sarif?"),
        (["--json=a.json", "x"], "; did you mean --output-format json?"),
        (["--exlcude", "a", "x"], "; did you mean --exclude?"),
        (["--ignore", "HIER01", "x"], "got 'HIER01'; did you mean HIER"),
        (["--time-limit", "-1", "x"], "--time-limit must be at least 0 seconds (0: none), got -1"),
        (["--line-length", "-1", "x"], "--line-length must be at least 0"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_path_that_does_not_exist(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capsys.readouterr().out


def test_list_rules(capsys) -> None:
    assert main(["--list-rules"]) == 0
    out = capsys.readouterr().out
    assert all(rule.id in out for rule in RULES)
    assert "HIER113" in out
    assert "HIER190" in out


def test_json_report(tree: Path, capsys) -> None:
    (tree / "src/left.py").write_text(LEFT)
    assert main(["--check", "--output-format", "json", str(tree)]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == 2
    assert report["files_changed"] == [str(tree / "src/left.py"), str(tree / "src/old.py")]
    assert {entry["rule"] for entry in report["rewritten"]} == {"HIER001", "HIER009"}
    assert [(entry["rule"], entry["line"]) for entry in report["left"]] == [("HIER101", 4)]
    assert report["densities"]["seq_len"] == 16_384
    [found] = report["densities"]["configurations"]
    assert found["summary"] == "default 8.9 % -> 1.0 %: 8.9x fewer blocks"
    assert found["places"] == [{"path": str(tree / "src/old.py"), "line": 3}]
    assert found["not_causal"] == SIDES[False]
    assert found["causal"] == SIDES[True]


def test_sarif_report_in_a_file(tree: Path) -> None:
    (tree / "src/left.py").write_text(LEFT)
    (tree / "src/bad.py").write_text("import dilated_attention_pytorch\nHierarchical = (\n")
    main(["--check", "--output-format", "sarif", "--report", str(tree / "out.sarif"), str(tree / "src")])
    document = json.loads((tree / "out.sarif").read_text())
    assert document["version"] == "2.1.0"
    results = document["runs"][0]["results"]
    assert {"HIER101", "HIER190", "HIER001"} <= {result["ruleId"] for result in results}
    known = {rule["id"] for rule in document["runs"][0]["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in results} <= known
    [found] = document["runs"][0]["properties"]["densities"]["configurations"]
    assert (found["not_causal"], found["causal"]) == (SIDES[False], SIDES[True])


def test_github_report(tree: Path, capsys) -> None:
    (tree / "src/left.py").write_text(LEFT)
    main(["--check", "--output-format", "github", str(tree / "src")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("::warning file=") and "line=4,title=HIER101::" in line for line in lines)
    assert any(line.startswith("::notice file=") for line in lines)
    [notice] = [line for line in lines if "title=HIER001" in line]
    assert NOT_CAUSAL.strip().replace("%", "%25") in notice
    assert CAUSAL.strip().replace("%", "%25") in notice


def test_report_that_cannot_be_written(tree: Path, capsys) -> None:
    """Said before anything is changed; no folder is made."""
    for path, why in (
        (tree / "no/such/file", f"there is no folder {tree / 'no/such'}"),
        (tree, "this is a folder"),
    ):
        assert main(["--report", str(path), str(tree / "src")]) == 2
        assert f"the report cannot be written: {why}" in capsys.readouterr().err
    assert (tree / "src/old.py").read_text() == OLD
    assert not (tree / "no").exists()


def test_says_what_it_wrote(tree: Path, capsys) -> None:
    assert main(["--report", str(tree / "out.json"), str(tree / "src")]) == 0
    err = capsys.readouterr().err
    assert f"wrote the report (json) to {tree / 'out.json'}; 2 files scanned, 1 changed" in err
    (tree / "src/old.py").write_text(OLD)
    assert main(["--output-format", "sarif", str(tree / "src")]) == 0
    assert "2 files scanned, 1 changed, 0 left to a person" in capsys.readouterr().err


def test_sarif_has_help_for_every_rule(tree: Path, capsys) -> None:
    (tree / "src/left.py").write_text(LEFT)
    main(["--check", "--output-format", "sarif", str(tree / "src")])
    [done] = json.loads(capsys.readouterr().out)["runs"]
    rules = done["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) > 20
    for rule in rules:
        assert f"--ignore {rule['id']}" in rule["help"]["text"]
        assert all(
            rule[part]["text"].endswith(".") for part in ("shortDescription", "fullDescription", "help")
        )
        assert rule["defaultConfiguration"]["level"] in ("note", "warning")
    for result in done["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("note", "warning", "error")
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].startswith("file:///")
        assert place["region"]["startLine"] >= 1
    assert done["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


def test_settings_of_pyproject(tree: Path, capsys) -> None:
    (tree / "pyproject.toml").write_text(
        '[tool.migrate-hierarchical]\nsparsity-ratio = 0.05\nexclude = ["skipped"]\nexplain = true\n'
    )
    (tree / "src/skipped").mkdir()
    (tree / "src/skipped/a.py").write_text(OLD)
    assert main([str(tree / "src")]) == 0
    assert (
        "sparsity_ratio=0.05,  # keeps 5% of the blocks, at least 2 per row (causal: 3)\n"
        in (tree / "src/old.py").read_text()
    )
    assert (tree / "src/skipped/a.py").read_text() == OLD
    capsys.readouterr()
    (tree / "src/old.py").write_text(OLD)
    assert main(["--sparsity-ratio", "0.02", str(tree / "src")]) == 0
    assert "sparsity_ratio=0.02," in (tree / "src/old.py").read_text()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("ratio = 1", "has no 'ratio'; it knows sparsity-ratio"),
        ('sparsity-ratio = "a"', "sparsity-ratio of [tool.migrate-hierarchical] cannot be 'a'"),
        ("select = 1", "cannot be 1"),
        ("exclud = []", "; did you mean exclude?"),
        ('ignore = ["HIER013"]', "--ignore must name rules of --list-rules"),
        ("= 1", "cannot be read"),
    ],
)
def test_wrong_settings_of_pyproject(tree: Path, table: str, message: str, capsys) -> None:
    (tree / "pyproject.toml").write_text(f"[tool.migrate-hierarchical]\n{table}\n")
    assert main([str(tree / "src")]) == 2
    assert message in capsys.readouterr().err
    assert (tree / "src/old.py").read_text() == OLD


def test_include_and_exclude(tree: Path) -> None:
    for name in ("one.py", "two.py", "three.pyi"):
        (tree / "src" / name).write_text(OLD)
    assert main(["--include", "*.py", "--exclude", "two.py", str(tree / "src")]) == 0
    changed = {path.name for path in (tree / "src").iterdir() if "variant" in path.read_text()}
    assert changed == {"old.py", "one.py"}


def test_jobs_give_the_same_result(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(20):
            (tmp_path / folder / f"f{i}.py").write_text(OLD * (1 if i % 2 else 2) + f"# {i}\n")
    assert main(["--jobs", "1", str(tmp_path / "one")]) == 0
    assert run("--jobs", "4", tmp_path / "two").returncode == 0
    for i in range(20):
        assert (tmp_path / f"one/f{i}.py").read_text() == (tmp_path / f"two/f{i}.py").read_text()


def test_no_progress_and_no_colour_in_a_pipe(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"f{i}.py").write_text(OLD)
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    for i in range(12):
        (tmp_path / f"f{i}.py").write_text(OLD)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "migrate_hierarchical", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    assert process.wait(60) == 0
    assert b"migrating" in os.read(leader, 100_000)
    os.close(leader)


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert "migrate-hierarchical 0." in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--select", "HIER001"], ["--list-rules"]])
def test_nothing_heavy_is_imported_without_a_use(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    code = (
        "import sys; from migrate_hierarchical.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('libcst', 'rich', 'pathspec', 'torch') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *options, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- marks and the length of lines


@pytest.mark.parametrize(
    ("settings", "file", "mark"),
    [
        ("[tool.black]\nline-length = 88\n", "pyproject.toml", "HIER101 subclass of a removed class"),
        ("[tool.ruff]\nline-length = 60\n", "pyproject.toml", "HIER101"),
        (
            "line-length = 200\n",
            "ruff.toml",
            "HIER101 subclass of a removed class: subclass BlockSparseAttention, or",
        ),
        (
            "[tool.ruff]\n",
            "pyproject.toml",
            "HIER101 subclass of a removed class: subclass BlockSparseAttention, or",
        ),
        (
            "[tool.ruff]\nline-length = 'a'\n",
            "pyproject.toml",
            "HIER101 subclass of a removed class: subclass",
        ),
        ("line-length = [", "ruff.toml", "HIER101 subclass of a removed class: subclass"),
    ],
)
def test_marks_keep_within_the_lines_of_the_project(
    settings: str, file: str, mark: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(settings)
    (tmp_path / "src").mkdir()
    path = tmp_path / "src/left.py"
    path.write_text(LEFT)
    assert main([str(tmp_path)]) == 2
    [line] = [line for line in path.read_text().splitlines() if "TODO" in line]
    assert line.startswith(f"# TODO(migrate-hierarchical): {mark}")
    assert ": subclass" in mark or line.endswith(mark)
    text = path.read_text()
    for more in ([], ["--line-length", "300"]):
        assert main([*more, str(tmp_path)]) == 2
        assert path.read_text() == text


def test_part_of_an_option_is_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.py"
    file.write_text(before := "from dilated_attention_pytorch import HierarchicalConfig\n")
    assert main(["--out=json", str(file)]) == 2
    assert "unrecognized arguments: --out=json" in capsys.readouterr().err
    assert file.read_text() == before
