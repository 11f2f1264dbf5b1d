"""The figures of the README are those of the committed runs; the site shows the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attention_bench import files, markdown, report

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools/attention-bench/results"
RESULTS = sorted(FOLDER.glob("*.json"))
IN_README = [FOLDER / "cpu.json", FOLDER / "h200.json"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_run_names_device_versions_and_date(path: Path) -> None:
    _, rows, where = files.read(str(path))
    assert rows
    assert markdown.table(str(path))
    assert where["device"]
    assert where["date"]
    assert where["versions"]["torch"]


@pytest.mark.parametrize("path", IN_README, ids=lambda path: path.stem)
def test_readme_shows_the_committed_figures(path: Path) -> None:
    shown = (ROOT / "README.md").read_text("utf-8")
    assert report.markdown(*report.read_json(str(path))) in shown, (
        "write it again: attention-bench markdown FILE"
    )


def test_list_of_commands_says_which_files_are_here() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    here, missing = (set(re.findall(r"--json (\S+)", part)) for part in text.split("Still to be measured"))
    present = {path.name for path in RESULTS}
    assert here == present - {"h200-0.3.0.json"}  # of a release before these commands
    assert missing
    assert not missing & present
