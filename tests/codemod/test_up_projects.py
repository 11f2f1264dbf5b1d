"""A renamed class stays importable from the modules from which other files take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

ATTENTION = """\
from dilated_attention_pytorch import BlockSparseRingDilatedAttention, SparsePatternConfig

model = BlockSparseRingDilatedAttention([2048], [1], SparsePatternConfig("dilated_sparse"))
"""
KEPT = """\
from dilated_attention_pytorch import BlockSparseAttention as BlockSparseRingDilatedAttention, SparsePatternConfig

model = BlockSparseRingDilatedAttention(sparse_config=SparsePatternConfig("dilated_sparse"))
"""
RENAMED = KEPT.replace(" as BlockSparseRingDilatedAttention", "").replace(
    "= BlockSparseRingDilatedAttention", "= BlockSparseAttention"
)
TAKERS = {
    "import": "from app.attention import BlockSparseRingDilatedAttention\n",
    "relative": "from .attention import (\n    model,\n    BlockSparseRingDilatedAttention as B,\n)\n",
    "member": "from app import attention\n\nx = attention.BlockSparseRingDilatedAttention\n",
}


def migrated(folder: Path, *paths: str) -> str:
    main(["--select", "UP", *(str(folder / path) for path in paths)])
    return (folder / "app/attention.py").read_text()


@pytest.mark.parametrize("given", ["app", "app/attention.py"], ids=["project", "file"])
@pytest.mark.parametrize("taker", TAKERS)
def test_a_name_that_another_file_takes_stays(tmp_path: Path, taker: str, given: str) -> None:
    make(
        tmp_path,
        {
            "pyproject.toml": "",
            "app/__init__.py": "",
            "app/attention.py": ATTENTION,
            "app/b.py": TAKERS[taker],
        },
    )
    assert migrated(tmp_path, given) == KEPT
    assert migrated(tmp_path, "app") == KEPT
    assert (tmp_path / "app/b.py").read_text() == TAKERS[taker]


def test_a_name_that_all_take_from_the_package_is_renamed(tmp_path: Path) -> None:
    other = "from dilated_attention_pytorch import BlockSparseRingDilatedAttention\nx: BlockSparseRingDilatedAttention\n"
    make(
        tmp_path,
        {"pyproject.toml": "", "app/__init__.py": "", "app/attention.py": ATTENTION, "app/b.py": other},
    )
    assert migrated(tmp_path, "app") == RENAMED
    new = other.replace("RingDilated", "")
    assert (tmp_path / "app/b.py").read_text() == new


def test_init_keeps_what_it_gives(tmp_path: Path) -> None:
    source = "from dilated_attention_pytorch import BlockSparseRingDilatedAttention\n"
    make(tmp_path, {"pyproject.toml": "", "app/__init__.py": source, "app/attention.py": ATTENTION})
    assert migrated(tmp_path, "app") == RENAMED
    kept = "from dilated_attention_pytorch import BlockSparseAttention as BlockSparseRingDilatedAttention\n"
    assert (tmp_path / "app/__init__.py").read_text() == kept


USERS = {
    "the old name": (
        "BlockSparseRingDilatedAttention",
        "x = BlockSparseRingDilatedAttention([2048], [1], pattern)\n",
        "x = BlockSparseRingDilatedAttention(sparse_config=pattern)\n",
    ),
    "another name": (
        "BlockSparseRingDilatedAttention as A",
        "x = A([2048], [1], pattern)\n",
        "x = A(sparse_config=pattern)\n",
    ),
    "the factory": (
        "create_block_sparse_attention",
        "x = create_block_sparse_attention(sparse_config=pattern, ring_size=2)\n",
        "x = create_block_sparse_attention(sparse_config=pattern)\n",
    ),
}


WHOLE, TAKER_FIRST, TAKER_LAST = ["app"], ["app/b.py", "app/attention.py"], ["app/attention.py", "app/b.py"]
# a class under a name of the user's own can be followed only as long as its module imports it by the old name
RUNS = [
    (way, given)
    for way in USERS
    for given in (WHOLE, TAKER_FIRST, TAKER_LAST)
    if (way, given) != ("another name", TAKER_LAST)
]


@pytest.mark.parametrize(("way", "given"), RUNS, ids=str)
def test_calls_of_what_comes_from_a_module_of_the_project(tmp_path: Path, way: str, given: list[str]) -> None:
    what, before, after = USERS[way]
    local = what.rpartition(" ")[2]
    files = {
        "pyproject.toml": "",
        "app/__init__.py": "",
        "app/attention.py": f"from dilated_attention_pytorch import {what}\n",
        "app/again.py": f"from app.attention import {local}\n",
        "app/b.py": f"from .again import {local}\n\n{before}",
    }
    make(tmp_path, files)
    for path in given:
        migrated(tmp_path, path)
    assert (tmp_path / "app/b.py").read_text() == files["app/b.py"].replace(before, after)
    assert f" {local}\n" in (tmp_path / "app/attention.py").read_text()


def test_a_new_name_is_imported_beside_a_module_of_the_project(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "",
        "app/__init__.py": "",
        "app/attention.py": "from dilated_attention_pytorch import create_block_sparse_attention\n",
        "app/b.py": "from .attention import create_block_sparse_attention as create\n\nx = create()\n",
    }
    make(tmp_path, files)
    migrated(tmp_path, "app")
    assert (tmp_path / "app/b.py").read_text() == (
        "from .attention import create_block_sparse_attention as create\n"
        "from dilated_attention_pytorch import SparsePatternConfig\n\n"
        'x = create(sparse_config=SparsePatternConfig(pattern_type="local_window", window_size=256))\n'
    )


def test_a_class_of_the_project_with_an_old_name_is_left_alone(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "",
        "app/__init__.py": "",
        "app/attention.py": "import dilated_attention_pytorch\n\nclass BlockSparseRingDilatedAttention: pass\n",
        "app/b.py": "from .attention import BlockSparseRingDilatedAttention as A\n\nx = A([2048], [1], 3)\n",
    }
    make(tmp_path, files)
    migrated(tmp_path, "app")
    assert {name: (tmp_path / name).read_text() for name in files} == files


@pytest.mark.parametrize("is_package", [True, False])
def test_the_package_itself_is_left_alone_but_no_other_folder_with_its_name(
    tmp_path: Path, is_package: bool
) -> None:
    source = "from dilated_attention_pytorch import SparsePatternConfig\n\nx = SparsePatternConfig()\n"
    files = {"pyproject.toml": "", "dilated_attention_pytorch/examples/a.py": source}
    if is_package:
        files["dilated_attention_pytorch/__init__.py"] = ""
    make(tmp_path, files)
    main(["--select", "UP", str(tmp_path)])
    text = (tmp_path / "dilated_attention_pytorch/examples/a.py").read_text()
    assert (text == source) == is_package
