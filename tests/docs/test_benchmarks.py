"""The page of benchmarks shows what its runs know."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.fences import ROOT

RUN = ROOT / "tools/attention-bench/results/h200-host.json"


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator, which finds its runs in `tmp_path`."""
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    module = importlib.import_module("benchmarks")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


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
