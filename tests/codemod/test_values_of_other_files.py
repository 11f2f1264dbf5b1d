"""Values that a file has from another one of its project: configurations, instances, and what makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.test_own_modules import make

PARTS = """\
import dilated_attention_pytorch as dap
from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig

SETTINGS = HierarchicalConfig()
MODEL: "object" = BlockSparseHierarchical([2048], [1])
OTHER = open("x")


class Defaults:
    levels = dap.HierarchicalConfig()


def new_model():
    model = BlockSparseHierarchical([2048], [1])
    return model


def typed() -> HierarchicalConfig:
    return SETTINGS


def outer():
    return new_model()
"""
READS = [
    "from kit.parts import SETTINGS\n\nprint(SETTINGS.num_levels)\n",
    "from .parts import SETTINGS as s\n\nprint(s.level_configs)\n",
    "from kit import SETTINGS\n\nprint(SETTINGS.num_levels)\n",
    "import kit.parts\n\nprint(kit.parts.SETTINGS.num_levels)\n",
    "from kit import parts\n\nprint(parts.MODEL.hierarchical_config)\n",
    "from kit.parts import new_model\n\nnew_model().get_pattern_stats(1024)\n",
    "from kit.parts import outer\n\nmodel = outer()\nmodel.visualize_pattern(1024)\n",
    "from kit.parts import typed\n\nprint(typed().num_levels)\n",
    "from kit.parts import Defaults\n\nprint(Defaults.levels.num_levels)\n",
]


def project(folder: Path, use: str) -> None:
    make(folder, {"setup.cfg": "", "kit/__init__.py": "from .parts import SETTINGS\n", "kit/parts.py": PARTS})
    make(folder, {"kit/use.py": use})


@pytest.mark.parametrize("use", READS)
@pytest.mark.parametrize("order", [["."], ["kit/use.py", "kit/parts.py"], ["kit/parts.py", "kit/use.py"]])
def test_members_are_reported(use: str, order: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    project(tmp_path, use)
    monkeypatch.chdir(tmp_path)
    for path in order:
        main([path])
    assert "HIER102" in capsys.readouterr().out
    assert "HIER102" in (tmp_path / "kit/use.py").read_text()
    new = {path: path.read_text() for path in tmp_path.rglob("*.py")}
    assert main(["."]) == 2
    assert {path: path.read_text() for path in new} == new


@pytest.mark.parametrize(
    "use",
    [
        "from kit.parts import OTHER\n\nprint(OTHER.num_levels)\n",
        "from elsewhere import SETTINGS\n\nprint(SETTINGS.num_levels)\n",
        "from kit.parts import SETTINGS\n\n\ndef f(pyramid):\n    return SETTINGS, pyramid.num_levels\n",
    ],
)
def test_members_of_other_values_are_not(use: str, tmp_path: Path) -> None:
    project(tmp_path, use)
    main([str(tmp_path)])
    assert (tmp_path / "kit/use.py").read_text() == use


def test_configuration_of_another_file_is_passed_on(tmp_path: Path) -> None:
    use = "from kit.parts import SETTINGS\nfrom dilated_attention_pytorch import BlockSparseHierarchical\n\n"
    project(tmp_path, use + "m = BlockSparseHierarchical([2048], [1], hierarchical_config=SETTINGS)\n")
    assert main([str(tmp_path)]) == 0
    assert "sparse_config=SETTINGS" in (tmp_path / "kit/use.py").read_text()
