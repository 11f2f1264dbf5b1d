"""Every script of examples/ runs, prints a few lines, and is shown on the site."""

from __future__ import annotations

import ast
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.fences import PAGES, ROOT, SCRIPT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"hugging_face.py": "transformers", "save_and_load.py": "safetensors"}
SHORTER = {"adaptive_retrieval.py": ("256", "70")}  # context and steps


def docstring(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text("utf-8"))) or ""


def test_scripts_are_found() -> None:
    assert len(SCRIPTS) >= 8
    assert set(NEEDS) <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_runs_and_prints_a_short_result(script: Path, tmp_path: Path) -> None:
    needed = NEEDS.get(script.name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: `nox -s docs` installs it")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, *SHORTER.get(script.name, ())],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= len(done.stdout.splitlines()) <= 10


@pytest.mark.parametrize("n_processes", [1, 3, 14])
def test_processes_that_cannot_share_the_batch_are_refused(
    n_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(n_processes))
    script = runpy.run_path(str(ROOT / "examples/train_distributed.py"))
    with pytest.raises(SystemExit, match=f"needs an even number of processes, at most 12, got {n_processes}"):
        script["main"]()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_says_first_what_it_shows(script: Path) -> None:
    text = docstring(script)
    assert "prints" in text
    assert script.read_text("utf-8").startswith('"""')


def test_page_of_examples_lists_every_script() -> None:
    page = (ROOT / "docs/examples.md").read_text("utf-8")
    for script in SCRIPTS:
        assert f"| [`{script.name}`](" in page


def test_every_script_is_shown_on_one_page() -> None:
    shown = [name for page in PAGES for name in SCRIPT.findall(page.read_text("utf-8"))]
    assert sorted(shown) == [f"examples/{script.name}" for script in SCRIPTS]


def test_readme_names_the_examples() -> None:
    assert "](examples)" in (ROOT / "README.md").read_text("utf-8")
