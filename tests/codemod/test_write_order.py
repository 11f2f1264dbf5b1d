"""A run that ends early, or cannot write a file, leaves a tree that the next run finishes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrate_hierarchical import runner
from migrate_hierarchical.cli import main
from tests.codemod.trees import make

FROM = "from dilated_attention_pytorch import "
ALIAS = {
    "core/__init__.py": FROM + "BlockSparseHierarchical as Attn\n\n__all__ = ['Attn']\n",
    **{f"m{i}.py": "from core import Attn\n\nx = Attn([2048], [1])\n" for i in range(3)},
}
PLAIN = {
    "core/__init__.py": FROM + "HierarchicalConfig\n\n__all__ = ['HierarchicalConfig']\n",
    **{f"m{i}.py": "from core import HierarchicalConfig\n\nx = HierarchicalConfig()\n" for i in range(3)},
}
CHAIN = {
    "core/__init__.py": "from .names import HierarchicalConfig\n\n__all__ = ['HierarchicalConfig']\n",
    "core/names.py": FROM + "HierarchicalConfig\n\n__all__ = ['HierarchicalConfig']\n",
    **{f"m{i}.py": "from core import HierarchicalConfig\n\nx = HierarchicalConfig()\n" for i in range(3)},
}
PROJECTS = {"alias": ALIAS, "plain": PLAIN, "chain": CHAIN}


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.py"))}


@pytest.fixture
def whole(project: dict[str, str], tmp_path: Path) -> dict[str, str]:
    make(tmp_path / "whole", project)
    assert main([str(tmp_path / "whole")]) == 0
    return tree(tmp_path / "whole")


@pytest.mark.parametrize("n_written", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_run_that_was_interrupted_is_finished_by_the_next(
    project: dict[str, str],
    whole: dict[str, str],
    n_written: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "part", project)
    write, written = runner.write, []

    def interrupted(result) -> None:
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(result.path)
        write(result)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write", interrupted)
        if n_written < len(project):
            assert main([str(tmp_path / "part")]) == 130
    assert main([str(tmp_path / "part")]) == 0
    assert tree(tmp_path / "part") == whole


@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_module_stays_while_an_importer_cannot_be_written(
    project: dict[str, str],
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "part", project)
    locked = str(tmp_path / "part" / "m1.py")
    write = runner.write

    def refused(result) -> None:
        if os.path.abspath(result.path) == locked:
            runner.leave(result, "cannot be written: Permission denied")
        else:
            write(result)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write", refused)
        assert main([str(tmp_path / "part")]) == 2
    err = capsys.readouterr()
    assert "m1.py imports from it and cannot be changed" in err.out + err.err
    assert tree(tmp_path / "part")["core/__init__.py"] == project["core/__init__.py"]
    assert main([str(tmp_path / "part")]) == 0
    assert tree(tmp_path / "part") == whole
