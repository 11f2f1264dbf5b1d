"""Projects that once ended in two places, depending on how they were cut into runs; most were found at random."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.test_parts_of_projects import sorted_imports
from tests.codemod.trees import make

FROM = "from dilated_attention_pytorch import "
CALL = "x = BlockSparseHierarchical([2048], [1])\n"


def ends(folder: Path, files: dict[str, str], runs: list[list[str]]) -> dict[str, str]:
    """The files after some runs and one on everything, which is repeated and changes nothing more."""
    make(folder, {"setup.cfg": "", **files})
    for *options, path in runs:
        main([*options, str(folder / path)])
    status = main([str(folder)])
    new = {path: (folder / path).read_text() for path in files}
    assert main([str(folder)]) == status
    assert {path: (folder / path).read_text() for path in files} == new
    return new


@pytest.mark.parametrize("rule", ["HIER001", "HIER002", "HIER008", "HIER009"])
@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize("path", ["", "app/__init__.py"])
def test_name_that_a_re_export_has_got(path: str, option: str, rule: str, tmp_path: Path) -> None:
    files = {
        "app/compat.py": FROM + "BlockSparseHierarchical\n",
        "app/__init__.py": FROM
        + "HierarchicalConfig as Own\nfrom app.compat import BlockSparseHierarchical\n\n"
        + CALL,
    }
    whole = ends(tmp_path / "whole", files, [])
    assert "sparse_config=SparsePatternConfig(\n" in whole["app/__init__.py"]
    parts = ends(tmp_path / "parts", files, [[option, rule, path]])
    assert [sorted_imports(text) for text in parts.values()] == [
        sorted_imports(text) for text in whole.values()
    ]


@pytest.mark.parametrize(
    ("one", "other", "use"),
    [
        ("create_block_sparse_attention as A", "create_hierarchical_attention as A", "x = [A]\n"),
        ("create_block_sparse_attention as A", "create_hierarchical_attention as A", "x = A(512, 8)\n"),
        ("SparsePatternConfig as A", "HierarchicalConfig as A", "def f(x: A): ...\n"),
        ("BlockSparseAttention as A", "BlockSparseHierarchical as A", "x = A([2048], [1])\n"),
    ],
)
@pytest.mark.parametrize(
    "layout",
    [
        "from {p} import {0}\nfrom {p} import {1}\n",
        "if new:\n    from {p} import {0}\nelse:\n    from {p} import {1}\n",
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_kept_and_removed_name_under_one_name(
    swap: bool, layout: str, one: str, other: str, use: str, tmp_path: Path
) -> None:
    names = (other, one) if swap else (one, other)
    text = layout.format(*names, p="dilated_attention_pytorch")
    make(tmp_path, {"a.py": text + use})
    assert main([str(tmp_path)]) == 2
    new = (tmp_path / "a.py").read_text()
    assert new.startswith(text)
    assert "HIER107" in new.removeprefix(text)


@pytest.mark.parametrize(
    "use",
    [
        "def f(x):\n    return isinstance(x, BlockSparseHierarchical)\n",
        "def f(x: BlockSparseHierarchical): ...\n",
        "def f(x: 'BlockSparseHierarchical'): ...\n",
        CALL,
    ],
)
@pytest.mark.parametrize("rules", ["HIER008", "HIER001,HIER008", "HIER009", "HIER001,HIER009"])
@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_import_that_others_wait_for(option: str, rules: str, use: str, tmp_path: Path) -> None:
    files = {
        "app/compat.py": FROM + f"BlockSparseHierarchical  # noqa: F401\n\n\n{use}",
        "app/layers.py": "from .compat import BlockSparseHierarchical\n\n" + CALL,
    }
    parts, compat = tmp_path / "parts", tmp_path / "parts/app/compat.py"
    make(parts, {"setup.cfg": "", **files})
    status = main([str(compat), option, rules])
    once = compat.read_text()
    assert main([str(compat), option, rules]) == status
    assert compat.read_text() == once
    assert ends(parts, {}, []) == {}
    whole = ends(tmp_path / "whole", files, [])
    for path, text in whole.items():
        assert sorted_imports((parts / path).read_text()) == sorted_imports(text)


@pytest.mark.parametrize("rules", ["HIER001,HIER002,HIER005,HIER008", "HIER005", "HIER009"])
@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize(
    "names",
    [
        "Own, create_hierarchical_attention, create_block_sparse_attention",
        "create_hierarchical_attention, create_block_sparse_attention, Own",
        "create_hierarchical_attention, create_block_sparse_attention",
    ],
)
def test_kept_names_stay_in_the_import_of_an_own_module(
    names: str, option: str, rules: str, tmp_path: Path
) -> None:
    files = {
        "app/__init__.py": FROM + "create_hierarchical_attention, create_block_sparse_attention\n"
        "from dilated_attention_pytorch import BlockSparseHierarchical as Own\n",
        "model.py": f"from app import {names}\n\nx = create_block_sparse_attention('hierarchical')\n"
        "y = [create_hierarchical_attention]\n",
    }
    whole = ends(tmp_path / "whole", files, [])
    first, second = whole["model.py"].splitlines()[:2]
    assert first == "from app import create_hierarchical_attention, create_block_sparse_attention"
    assert second == FROM + "SparsePatternConfig"
    parts = ends(tmp_path / "parts", files, [[option, rules, "model.py"]])
    assert [sorted_imports(text) for text in parts.values()] == [
        sorted_imports(text) for text in whole.values()
    ]
