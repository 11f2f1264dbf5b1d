"""What is said of imports that stay for other files."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

PROJECT = {
    "pyproject.toml": "[tool.ruff]\nline-length = 79\n",
    "models/__init__.py": "from .attention import BlockSparseHierarchical\n",
    "models/attention.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n",
    "use.py": "from models import BlockSparseHierarchical\n\nx = [BlockSparseHierarchical]\n",
}
MARK = "# TODO(migrate-hierarchical): HIER109 removed name that others import here\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make(tmp_path, PROJECT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_said_of_an_import_that_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["."]) == 2
    assert (project / "models/attention.py").read_text() == MARK + PROJECT["models/attention.py"]
    said = "HIER109 removed name that others import here: change those files first"
    assert (
        f"models/__init__.py:2: {said} (use.py imports BlockSparseHierarchical from here)"
        in capsys.readouterr().out
    )


def test_what_is_said_of_an_import_in_a_circle(tmp_path: Path, monkeypatch, capsys) -> None:
    imports = "from dilated_attention_pytorch import {}\n\n\ndef f():\n    from {} import {} as taken\n\n    return taken()\n"
    names = "HierarchicalConfig", "get_hierarchical_presets"
    make(
        tmp_path,
        {"a.py": imports.format(names[0], "b", names[1]), "b.py": imports.format(names[1], "a", names[0])},
    )
    monkeypatch.chdir(tmp_path)
    assert main(["a.py"]) == 2
    assert (
        "import left as it is, because a file that was not given takes it from here"
        in capsys.readouterr().out
    )
    assert "TODO" not in Path("a.py").read_text()
    assert main(["b.py"]) == 0
    assert main(["a.py"]) == 0
    assert f"import {names[0]}" not in Path("a.py").read_text()
