"""Files that take removed names from another file of the same project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from migrate_hierarchical.reexports import Reexports

BASE = "from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig\n"
USE = "model = BlockSparseHierarchical([2048, 4096], [1, 2], hierarchical_config=HierarchicalConfig())\n"
NEW_IMPORT = "from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig\n"


def make(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("exporter", "consumer", "line"),
    [
        ("app/attention.py", "app/model.py", "from app.attention import {}"),
        ("app/attention.py", "app/model.py", "from .attention import {}"),
        ("app/attention.py", "app/deep/er/model.py", "from ...attention import {}"),
        ("src/app/attention/__init__.py", "tests/test_model.py", "from app.attention import {}"),
        ("attention.py", "model.py", "from attention import {}"),
    ],
)
def test_importers_are_moved_to_the_package(
    exporter: str, consumer: str, line: str, tmp_path: Path, capsys
) -> None:
    text = line.format("BlockSparseHierarchical, HierarchicalConfig") + "\n" + USE
    make(tmp_path, {exporter: BASE, consumer: text, "unrelated.py": "# BlockSparseHierarchical\n"})
    assert main([str(tmp_path)]) == 0
    new = (tmp_path / consumer).read_text()
    assert new.startswith(NEW_IMPORT + "model = create_block_sparse_attention(\n")
    assert "ierarchical" not in new
    assert main(["--check", str(tmp_path)]) == 0


def test_other_names_of_the_module_stay_where_they_are(tmp_path: Path) -> None:
    text = (
        "from .attention import helper, HierarchicalConfig  # both\nconfig = helper(HierarchicalConfig())\n"
    )
    make(tmp_path, {"app/attention.py": BASE + "\n\ndef helper(x):\n    return x\n", "app/model.py": text})
    assert main([str(tmp_path)]) == 0
    new = (tmp_path / "app/model.py").read_text()
    assert new.startswith(
        "from .attention import helper\nfrom dilated_attention_pytorch import SparsePatternConfig  # both\n"
    )


def test_chain_of_modules(tmp_path: Path) -> None:
    files = {
        "app/low.py": BASE,
        "app/__init__.py": "from .low import BlockSparseHierarchical, HierarchicalConfig\n",
        "use.py": "from app import BlockSparseHierarchical, HierarchicalConfig\n" + USE,
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "use.py").read_text().startswith(NEW_IMPORT)
    assert (tmp_path / "app/__init__.py").read_text() == (
        "from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig\n"
    )


def test_module_with_a_class_of_that_name_is_none_of_ours(tmp_path: Path) -> None:
    own = "class HierarchicalConfig:\n    pass\n"
    files = {
        "app/attention.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n" + own,
        "app/model.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "app/model.py").read_text() == files["app/model.py"]


def test_two_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = {
        "one/attention.py": BASE,
        "two/attention.py": "class HierarchicalConfig:\n    pass\n",
        "one/use.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
        "two/use.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert "SparsePatternConfig" in (tmp_path / "one/use.py").read_text()
    assert (tmp_path / "two/use.py").read_text() == files["two/use.py"]


def test_uses_that_stay_are_reported(tmp_path: Path, capsys) -> None:
    text = (
        "from .attention import BlockSparseHierarchical\n\n\nclass Own(BlockSparseHierarchical):\n    pass\n"
    )
    make(tmp_path, {"app/attention.py": BASE, "app/model.py": text})
    assert main([str(tmp_path)]) == 2
    assert "model.py:5: HIER101" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 2, "the mark is still there"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import app.attention", "app.attention"),
        ("import app.attention as a", "a"),
        ("from app import attention", "attention"),
        ("from . import attention", "attention"),
    ],
)
def test_uses_through_the_module_are_reported(line: str, name: str, tmp_path: Path, capsys) -> None:
    make(tmp_path, {"app/attention.py": BASE, "app/model.py": f"{line}\nx = {name}.HierarchicalConfig()\n"})
    assert main([str(tmp_path)]) == 2
    assert "model.py:3: HIER109" in capsys.readouterr().out


def test_migrated_project_runs(tmp_path: Path) -> None:
    pytest.importorskip("dilated_attention_pytorch")
    files = {
        "app/__init__.py": "",
        "app/attention.py": BASE + "__all__ = ['BlockSparseHierarchical', 'HierarchicalConfig']\n",
        "app/model.py": "from .attention import BlockSparseHierarchical, HierarchicalConfig\n" + USE,
        "run.py": "import app.attention, app.model\nprint(type(app.model.model).__name__)\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("BlockSparseAttention\n", 0), done.stderr


def test_absolute_imports_need_one_module(tmp_path: Path) -> None:
    reexports = Reexports()
    assert reexports.add(str(tmp_path / "a/x.py"), {"A": "A"})
    assert not reexports.add(str(tmp_path / "a/x.py"), {"A": "A"})
    assert reexports.find(str(tmp_path / "main.py"), "x") == {"A": "A"}
    assert reexports.add(str(tmp_path / "b/x.py"), {"A": "A"})
    assert reexports.find(str(tmp_path / "main.py"), "x") == {}
    assert reexports.find(str(tmp_path / "main.py"), "b.x") == {"A": "A"}
    assert not reexports.add("notes.md", {"A": "A"})
