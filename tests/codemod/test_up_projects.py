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
