"""Marks above imports that are there for another file go when that file is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

FROM = "from dilated_attention_pytorch import "
STAR = "from app.compat import *\n\nx = HierarchicalConfig()\n"
SUBCLASS = "from app.compat import HierarchicalConfig\n\n\nclass Own(HierarchicalConfig):\n    pass\n"
DONE = FROM + "SparsePatternConfig\n\nx = SparsePatternConfig()\n"


@pytest.mark.parametrize("use", [STAR, SUBCLASS])
@pytest.mark.parametrize(
    ("compat", "new"),
    [
        ("HierarchicalConfig  # noqa: F401\n", "SparsePatternConfig  # noqa: F401\n"),
        ("HierarchicalConfig as HierarchicalConfig\n", "SparsePatternConfig as SparsePatternConfig\n"),
        ("HierarchicalConfig\n\n__all__ = ['HierarchicalConfig']\n", None),
        ("HierarchicalConfig, SparsePatternConfig\n\ny = SparsePatternConfig()\n", None),
    ],
)
@pytest.mark.parametrize("head", ["", '"""Names."""\n\n', "# names\n"])
def test_mark_of_a_re_export_goes(head: str, compat: str, new: str | None, use: str, tmp_path: Path) -> None:
    done = FROM + (new or compat.replace("HierarchicalConfig, ", "").replace("Hierarchical", "SparsePattern"))
    make(tmp_path, {"app/__init__.py": "", "app/compat.py": head + FROM + compat, "app/use.py": use})
    assert main([str(tmp_path)]) == 2
    assert "HIER109" in (tmp_path / "app/compat.py").read_text()
    (tmp_path / "app/use.py").write_text(DONE)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "app/compat.py").read_text() == head + done


def test_mark_that_still_holds_stays(tmp_path: Path) -> None:
    compat = FROM + "BlockSparseHierarchical, HierarchicalConfig\n"
    both = (
        SUBCLASS
        + "\n\nfrom app.compat import BlockSparseHierarchical\n\n\nclass A(BlockSparseHierarchical):\n    pass\n"
    )
    make(tmp_path, {"app/__init__.py": "", "app/compat.py": compat, "app/use.py": both})
    assert main([str(tmp_path)]) == 2
    make(tmp_path, {"app/use.py": SUBCLASS})
    assert main([str(tmp_path)]) == 2
    lines = (tmp_path / "app/compat.py").read_text().splitlines()
    assert "HIER109" in lines[0]
    assert lines[1:] == [FROM + "HierarchicalConfig"]


@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_some_of_the_rules_leave_it(option: str, tmp_path: Path) -> None:
    compat = FROM + "BlockSparseHierarchical, HierarchicalConfig\nx = BlockSparseHierarchical([2048], [1])\n"
    make(tmp_path, {"app/__init__.py": "", "app/compat.py": compat, "app/use.py": SUBCLASS})
    main([str(tmp_path)])
    marked = (tmp_path / "app/compat.py").read_text()
    for rule in ("HIER001", "HIER008", "HIER009"):
        main([str(tmp_path), option, rule])
        assert (tmp_path / "app/compat.py").read_text() == marked
