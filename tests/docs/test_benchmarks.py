"""The page of benchmarks shows what its runs know."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from attention_bench import calls, files, report, short
from attention_bench.cases import RANDOM, Case
from attention_bench.measure import Row
from tests.docs.fences import ROOT

RUN = ROOT / "tools/attention-bench/results/h200-host.json"


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator, which finds its runs in `tmp_path`."""
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    module = importlib.import_module("benchmarks")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_every_figure_that_a_page_includes_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    importlib.import_module("benchmarks").write(tmp_path, tmp_path)
    pages = [page.read_text("utf-8") for page in ROOT.glob("docs/**/*.md")]
    included = {name for page in pages for name in re.findall(r"docs/generated/(benchmark-\S+\.md)", page)}
    assert len(included) > 5
    assert included <= {path.name for path in tmp_path.iterdir()}


def write(folder: Path, **floors: float) -> None:
    """A run of `attention-bench host` with 21 us forward and 34 us with gradients, and these floors."""
    content = json.loads(RUN.read_text("utf-8"))
    (row,) = content["rows"]
    for name in ("forward_floor_us", "forward_grad_floor_us"):
        row.pop(name, None)
    row.update(forward_us=21.0, forward_grad_us=34.0, **floors)
    (folder / "a-host.json").write_text(json.dumps(content), "utf-8")


def test_python_time_is_shown_and_explained(benchmarks: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, forward_floor_us=9.0, forward_grad_floor_us=21.5)
    page = "\n".join(benchmarks.parts())
    assert "| 21.0 us (12.0 us of Python) | 34.0 us (12.5 us of Python) |" in page
    assert page.count(benchmarks.OF_PYTHON) == 1


def test_run_without_it_shows_the_whole_call(benchmarks: ModuleType, tmp_path: Path) -> None:
    write(tmp_path)
    page = "\n".join(benchmarks.parts())
    assert "| 21.0 us | 34.0 us |" in page
    assert "of Python" not in page
    assert benchmarks.OF_PYTHON not in page


def test_runs_of_presets_and_calls_have_their_parts(benchmarks: ModuleType, tmp_path: Path) -> None:
    where = {
        "device": "a GPU",
        "date": "2026-01-02",
        "versions": {"torch": "2.11"},
        "command": "attention-bench",
    }
    case = Case(32768, 16, 128, 64, 0.05, pattern=RANDOM)
    ours = Row("ours", case, forward_ms=1.05, backward_ms=2.87, forward_tflops=427.0, backward_tflops=388.0)
    peer = Row("bsa", case, forward_ms=0.92, backward_ms=4.03, forward_tflops=484.0, backward_tflops=277.0)
    report.write_json(str(tmp_path / "a-topk.json"), [ours, peer], where)
    call = calls.CallRow("sinks", case, "plain", "hopper", 9, 1.0, 2.0, 1.05, 1.2)
    files.write(str(tmp_path / "a-calls.json"), calls.KIND, [call], where)
    row = short.ShortRow("ours", case, eager_us=20.0)
    files.write(str(tmp_path / "a-short.json"), short.KIND, [row], where)
    page = "\n".join(benchmarks.parts()).replace("\N{NO-BREAK SPACE}", " ")
    for name in ("topk", "calls", "short"):
        heading, text = next(part[1:] for part in benchmarks.PARTS if name in part[0])
        assert f"## {heading}\n" in page
        assert text in page
    assert "| 1.05 ms (427) / 2.87 ms (388) | **0.92 ms (484)** / 4.03 ms (277) |" in page
    assert "| sinks | plain | hopper | 1 ms, 1.05 | 2 ms, 1.20 (slow) | - / - |" in page
    assert page.count("a GPU, 2026-01-02; torch 2.11; `attention-bench`") == 3


def test_cases_of_peers_that_are_ahead_name_both_of_our_modes(benchmarks: ModuleType) -> None:
    case = Case(32768, 16, 128, 128, 0.05)
    rows = [
        Row("ours", case, forward_ms=1.0, backward_ms=3.0),
        Row("ours-unordered", case, forward_ms=0.9, backward_ms=2.5),
        Row("bsa", case, forward_ms=1.1, backward_ms=2.75),
        Row("bsa-one-bucket", case, forward_ms=1.1, backward_ms=2.9),
    ]
    assert (
        benchmarks.behind(rows) == f"- {case.label}, backward: bsa 2.75 ms, ours 3 ms, in any order 2.5 ms.\n"
    )
    assert benchmarks.behind(rows[:2]) == "None of these cases.\n"
