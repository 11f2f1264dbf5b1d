"""The figures of the README are those of the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import report

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "tools/attention-bench/results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_run_names_device_versions_and_date(path: Path) -> None:
    rows, where = report.read_json(str(path))
    assert rows
    assert where["device"]
    assert where["date"]
    assert where["versions"]["torch"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_readme_shows_the_committed_figures(path: Path) -> None:
    shown = (ROOT / "README.md").read_text("utf-8")
    assert report.markdown(*report.read_json(str(path))) in shown, (
        "write it again: attention-bench markdown FILE"
    )


def test_there_are_runs() -> None:
    assert {path.stem for path in RESULTS} == {"cpu", "h200"}
