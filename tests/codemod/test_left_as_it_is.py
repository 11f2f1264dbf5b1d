"""`# noqa: HIER0xx` leaves a use as it is, as `--ignore` does in the whole run: its import stays, nothing is marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

PACKAGE = "dilated_attention_pytorch"
FROM = f"from {PACKAGE} import "
# rule -> a file with one use of it; HERE marks the line of the use
USES = {
    "HIER001": "BlockSparseHierarchical\nx = BlockSparseHierarchical([2048], [1])HERE\n",
    "HIER002": "HierarchicalConfig, get_hierarchical_presets as presets\n"
    "x = [HierarchicalConfig(), presets()['long_range'], presets()]HERE\n",
    "HIER003": "create_hierarchical_block_sparse as create\nx = create('long_range', segment_lengths=[2048])HERE\n",
    "HIER004": "create_hierarchical_attention\nx = create_hierarchical_attention(512, 8)HERE\n",
    "HIER005": "create_block_sparse_attention\nx = create_block_sparse_attention('hierarchical')HERE\n",
    "HIER006": "get_block_sparse_preset\nx = get_block_sparse_preset('hierarchical_fine')HERE\n",
    "HIER007": "SparsePatternConfig\nx = SparsePatternConfig(pattern_type='hierarchical')HERE\n",
    "HIER008": "HierarchicalConfig\n\ndef f(x: HierarchicalConfig) -> 'HierarchicalConfig': ...HERE\n",
    "HIER009": "HierarchicalConfigHERE\n",
}
OTHER_WAYS = {
    "HIER001": [
        "BlockSparseHierarchical as B\nx = [\n    B(\n        [2048],\n        [1],\n    ),HERE\n]\n",
        "BlockSparseHierarchical as B\nx = B(HERE\n    [2048],\n    [1],\n)\n",
        "BlockSparseHierarchical as B\nif B([2048], [1]):HERE\n    pass\n",
        "BlockSparseHierarchical as B\nx = f(\n    B([2048], [1])\n)HERE\n",
        "block_sparse_hierarchical as m\nx = m.BlockSparseHierarchical([2048], [1])HERE\n",
    ],
    "HIER002": [
        "HierarchicalConfig\nfrom dataclasses import field\nx = field(default_factory=HierarchicalConfig)HERE\n"
    ],
    "HIER008": [
        "HierarchicalConfig\n__all__ = ['HierarchicalConfig']HERE\n",
        "BlockSparseHierarchical\nx = isinstance(y, BlockSparseHierarchical)HERE\n",
    ],
    "HIER009": ["(\n    HierarchicalConfig,HERE\n)\n", "(\n    HierarchicalConfig,\n)HERE\n"],
}
EVERY = list(USES.items())
EVERY += [(rule, text) for rule, texts in OTHER_WAYS.items() for text in texts]


def python(text: str) -> tuple[str, str]:
    return "x.py", FROM + text


def notebook(text: str) -> tuple[str, str]:
    lines = (FROM + text).splitlines(keepends=True)
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": lines}
    return "x.ipynb", json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def page(text: str) -> tuple[str, str]:
    return "x.md", f"# Page\n\n```python\n{FROM}{text}```\n"


@pytest.mark.parametrize("kind", [python, notebook, page])
@pytest.mark.parametrize(("rule", "text"), EVERY)
def test_use_stays(rule: str, text: str, kind) -> None:
    path, source = kind(text.replace("HERE", f"  # noqa: {rule}"))
    result = migrate_bytes(path, source.encode(), Settings())
    assert (result.error, result.new, result.left, result.rewritten) == (None, None, [], [])
    path, source = kind(text.replace("HERE", "  # noqa: E501"))
    assert migrate_bytes(path, source.encode(), Settings()).new is not None


@pytest.mark.parametrize(("rule", "text"), USES.items())
def test_comment_without_ids_stops_no_rewrite(rule: str, text: str) -> None:
    with_comment, without = FROM + text.replace("HERE", "  # noqa"), FROM + text.replace("HERE", "")
    if rule == "HIER009":
        without = without.replace("Config", "Config  # noqa: F401")  # there to be imported by others
    new = migrate_bytes("x.py", with_comment.encode(), Settings()).new
    plain = migrate_bytes("x.py", without.encode(), Settings()).new
    assert new is not None
    assert plain is not None
    assert new.replace(b"  # noqa", b"") == plain.replace(b"  # noqa: F401", b"")


def test_other_uses_of_the_file_are_rewritten() -> None:
    text = (
        FROM + "BlockSparseHierarchical\n"
        "old = BlockSparseHierarchical([2048], [1])  # noqa: HIER001\n"
        "new = BlockSparseHierarchical([2048], [1])\n"
    )
    result = migrate_bytes("x.py", text.encode(), Settings())
    assert result.new is not None
    lines = result.new.decode().splitlines()
    assert lines[0] == (FROM + "BlockSparseHierarchical, create_block_sparse_attention, SparsePatternConfig")
    assert lines[1] == "old = BlockSparseHierarchical([2048], [1])  # noqa: HIER001"
    assert lines[2] == "new = create_block_sparse_attention("
    again = migrate_bytes("x.py", result.new, Settings())
    assert (again.new, again.left, result.left) == (None, [], [])


@pytest.mark.parametrize("way", ["import", "from"])
def test_import_of_a_module_that_is_gone_stays_for_it(way: str) -> None:
    head = {
        "import": f"import {PACKAGE}.block_sparse_hierarchical as m\n",
        "from": FROM + "block_sparse_hierarchical as m\n",
    }[way]
    for call, settings in (("  # noqa: HIER001", Settings()), ("", Settings(ignore=("HIER001",)))):
        text = head + f"x = m.BlockSparseHierarchical([2048], [1]){call}\n"
        result = migrate_bytes("x.py", text.encode(), settings)
        assert (result.new, result.left) == (None, [])


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_module_that_the_use_imports_from_keeps_the_name_without_a_report(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "",
        "app/__init__.py": "",
        "app/compat.py": FROM + "BlockSparseHierarchical\n",
        "use.py": "from app.compat import BlockSparseHierarchical\n\n"
        "x = BlockSparseHierarchical([2048], [1])  # noqa: HIER001\n",
    }
    write(tmp_path, files)
    for _ in range(2):
        assert main([str(tmp_path)]) == 0
        assert {name: (tmp_path / name).read_text() for name in files} == files


@pytest.mark.parametrize(
    "statement",
    [
        FROM + "BlockSparseHierarchicalHERE\n",
        FROM + "(\n    BlockSparseHierarchical,HERE\n)\n",
        FROM + "(\n    BlockSparseHierarchical,\n)HERE\n",
    ],
)
def test_file_that_waits_for_another_is_silenced(statement: str, tmp_path: Path, capsys) -> None:
    call = "\nx = BlockSparseHierarchical([2048], [1])\n"
    files = {
        "pyproject.toml": "",
        "app/__init__.py": "",
        "app/compat.py": statement.replace("HERE", "") + call,
        "use.py": "from app.compat import BlockSparseHierarchical\n" + call,
    }
    write(tmp_path, files)
    path = str(tmp_path / "app/compat.py")
    assert main([path]) == 2
    assert "HIER115" in capsys.readouterr().out
    assert main(["--ignore", "HIER115", path]) == 0
    files["app/compat.py"] = statement.replace("HERE", "  # noqa: HIER115") + call
    write(tmp_path, files)
    assert main([path]) == 0
    assert {name: (tmp_path / name).read_text() for name in files} == files
