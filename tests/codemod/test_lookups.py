"""Names of the project's modules that are looked up while the code runs: by strings in code, and in configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.test_own_modules import make

OLD = "from dilated_attention_pytorch import HierarchicalConfig\n"
LAZY_GETATTR = """\
def __getattr__(name):
    if name == "HierarchicalConfig":
        from . import shared

        return getattr(shared, name)
    raise AttributeError(name)
"""
LAZY_TABLE = """\
from importlib import import_module

PLACES = {"HierarchicalConfig": ".shared"}


def __getattr__(name):
    return getattr(import_module(PLACES[name], __name__), name)
"""


def run_twice(folder: Path, capsys) -> str:
    """The report of a first run, which a second one gives again, changing nothing."""
    assert main([str(folder)]) == 2
    first = capsys.readouterr().out
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert main([str(folder)]) == 2
    second = capsys.readouterr().out
    assert {path: path.read_bytes() for path in files} == files
    for rule in ("HIER109", "HIER120"):
        assert first.count(rule) == second.count(rule), second
    return second


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proj/__init__.py", LAZY_GETATTR),
        ("proj/__init__.py", LAZY_TABLE),
        (
            "proj/__init__.py",
            'import lazy_loader\n\n__getattr__, _, __all__ = lazy_loader.attach(__name__, submod_attrs={"shared": '
            '["HierarchicalConfig"]})\n',
        ),
        ("use.py", 'import importlib\n\nA = importlib.import_module("proj.shared").HierarchicalConfig\n'),
        (
            "use.py",
            'from importlib import import_module as load\n\nA = getattr(load(".shared", "proj"), "HierarchicalConfig")\n',
        ),
        ("use.py", 'import sys\n\nA = sys.modules["proj.shared"].HierarchicalConfig\n'),
        ("use.py", 'from proj import shared\n\nA = getattr(shared, "HierarchicalConfig")\n'),
        ("use.py", 'from proj import shared\n\nA = vars(shared)["HierarchicalConfig"]\n'),
        (
            "test_use.py",
            'from unittest import mock\n\nmock.patch("proj.shared.HierarchicalConfig").start()\n',
        ),
        (
            "test_use.py",
            'def test_it(monkeypatch):\n    monkeypatch.setattr("proj.shared.HierarchicalConfig", 1)\n',
        ),
        ("conf/model.yaml", "config:\n  _target_: proj.shared.HierarchicalConfig\n"),
        ("conf/model.yaml", "config:\n  module: proj.shared\n  class: HierarchicalConfig\n"),
        ("conf/model.json", '{"class_path": "proj.shared:HierarchicalConfig"}\n'),
        ("setup.cfg", "[options.entry_points]\nproj =\n    config = proj.shared:HierarchicalConfig\n"),
        ("pyproject.toml", '[project.entry-points.proj]\nconfig = "proj.shared:HierarchicalConfig"\n'),
    ],
)
def test_import_stays_for_who_looks_the_name_up(path: str, text: str, tmp_path: Path, capsys) -> None:
    make(
        tmp_path,
        {"proj/__init__.py": "", "proj/shared.py": OLD + "\ndefault = HierarchicalConfig()\n", path: text},
    )
    report = run_twice(tmp_path, capsys)
    assert f"{path} looks HierarchicalConfig up here" in report
    new = (tmp_path / "proj/shared.py").read_text()
    assert "HierarchicalConfig, SparsePatternConfig\n" in new
    assert "\ndefault = SparsePatternConfig(" in new
    assert (tmp_path / path).read_text() == text


def test_name_of_the_users_own_is_looked_up(tmp_path: Path, capsys) -> None:
    make(
        tmp_path,
        {
            "proj/shared.py": OLD.replace("Config\n", "Config as Levels\n"),
            "conf.yaml": "_target_: proj.shared.Levels\n",
        },
    )
    assert "conf.yaml looks Levels up here" in run_twice(tmp_path, capsys)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "use.py",
            'import other\nfrom proj import shared\n\nA = getattr(other, "HierarchicalConfig", shared.x)\n',
        ),
        (
            "use.py",
            'from proj import shared\n\n\ndef f(x: "HierarchicalConfig"):\n    return getattr(x, shared.x)\n',
        ),
        ("use.py", '"""See proj.shared.HierarchicalConfig; getattr."""\n'),
        ("use.py", 'A = getattr(x, "HierarchicalConfig")\n'),
        (
            "proj/count.py",
            '_n = 0\nOLD = ["HierarchicalConfig"]\n\n\ndef f(x):\n    global _n\n    _n += getattr(x, "size", 1)\n',
        ),
        (
            "proj/use.py",
            'OLD = {"HierarchicalConfig"}\nP = SparsePatternConfig("global_local", global_tokens=getattr(x, "y"))\n',
        ),
        ("proj/own.py", 'A = globals()["HierarchicalConfig"]\nB = getattr(A, "y")\n'),
        ("proj/own.py", 'import glob\n\nA = globals().get("HierarchicalConfig", getattr(glob, "y"))\n'),
        ("conf.yaml", "_target_: elsewhere.HierarchicalConfig\nshared: 1\n"),
        ("README.md", "`proj.shared.HierarchicalConfig`\n"),
    ],
)
def test_import_goes_where_no_other_file_looks_the_name_up(path: str, text: str, tmp_path: Path) -> None:
    make(tmp_path, {"proj/__init__.py": "", "proj/shared.py": OLD + "x = HierarchicalConfig()\n", path: text})
    main([str(tmp_path)])
    assert "ierarchical" not in (tmp_path / "proj/shared.py").read_text()


def test_one_file_at_a_time_keeps_what_is_looked_up(tmp_path: Path, capsys) -> None:
    files = {
        "pyproject.toml": "",
        "proj/shared.py": OLD + "x = HierarchicalConfig()\n",
        "conf.yaml": "_target_: proj.shared.HierarchicalConfig\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path / "proj/shared.py")]) == 2
    assert "conf.yaml looks HierarchicalConfig up here" in capsys.readouterr().out
    alone = (tmp_path / "proj/shared.py").read_text()
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 2
    assert (tmp_path / "proj/shared.py").read_text() == alone


@pytest.mark.parametrize(
    "read",
    [
        'A = globals()["HierarchicalConfig"]',
        'A = globals().get("HierarchicalConfig")',
        'A = "HierarchicalConfig" in globals()',
        'NAMES = ["HierarchicalConfig"]\nA = [globals()[name] for name in NAMES]',
        'NAMES = ["HierarchicalConfig"]\nA = [globals().get(name) for name in NAMES]',
    ],
)
def test_a_file_keeps_the_import_that_its_own_globals_need(read: str, tmp_path: Path, capsys) -> None:
    read += '\nB = getattr(A, "y")\n'
    make(tmp_path, {"own.py": OLD + read, "other.py": OLD + "x = HierarchicalConfig()\n"})
    report = run_twice(tmp_path, capsys)
    assert report.count("HIER103") == 1
    assert (tmp_path / "own.py").read_text().startswith(OLD + "# TODO(migrate-hierarchical): HIER103")
    assert "ierarchical" not in (tmp_path / "other.py").read_text()


def test_a_folder_that_is_searched_keeps_the_import(tmp_path: Path, capsys) -> None:
    text = (
        "import glob\nfrom importlib import import_module\n\n"
        'A = [getattr(import_module(name), "HierarchicalConfig") for name in glob.glob("*.py")]\n'
    )
    make(tmp_path, {"proj/shared.py": OLD + "x = HierarchicalConfig()\n", "proj/use.py": text})
    assert "use.py looks HierarchicalConfig up here" in run_twice(tmp_path, capsys)


PACKAGE = "dilated_attention_pytorch"


@pytest.mark.parametrize(
    "table",
    [
        f'TABLE = {{"HierarchicalConfig": "{PACKAGE}"}}',
        f'TABLE = {{"config": ("{PACKAGE}", "HierarchicalConfig")}}',
        f'TABLE = {{"{PACKAGE}": ["DilatedAttention", "HierarchicalConfig"]}}',
        f'ROOT = "{PACKAGE}"\nTABLE = {{"HierarchicalConfig": ROOT}}',
        f'TABLE = [["{PACKAGE}", "HierarchicalConfig"]]',
        f'd = import_module("{PACKAGE}")\nNAMES = ["HierarchicalConfig"]\nfor n in NAMES:\n    getattr(d, n)',
    ],
)
def test_table_of_names_is_reported(table: str, tmp_path: Path, capsys) -> None:
    make(tmp_path, {"lazy.py": "from importlib import import_module\n\n" + table + "\n"})
    report = run_twice(tmp_path, capsys)
    assert report.count("HIER103") == 1


@pytest.mark.parametrize(
    "table", ['T = {"HierarchicalConfig": "numpy"}', 'T = ["scipy", "HierarchicalConfig"]']
)
def test_table_of_other_names_is_not(table: str, tmp_path: Path) -> None:
    make(tmp_path, {"lazy.py": "import dilated_attention_pytorch\n\n" + table + "\n"})
    assert main([str(tmp_path)]) == 0


CONFIG = 'ATTENTION = dict(type="BlockSparseHierarchical", segment_lengths=[2048], dilation_rates=[1])\n'
BUILD = """\
import dilated_attention_pytorch as dap
from config import ATTENTION

arguments = dict(ATTENTION)
model = getattr(dap, arguments.pop("type"))(**arguments)
"""


@pytest.mark.parametrize("setting", [CONFIG, 'ATTENTION = {\n    "class": "BlockSparseHierarchical",\n}\n'])
def test_setting_in_python_is_reported(setting: str, tmp_path: Path, capsys) -> None:
    make(tmp_path, {"config.py": setting, "build.py": BUILD})
    report = run_twice(tmp_path, capsys)
    assert report.count("HIER103") == 1
    assert (tmp_path / "config.py").read_text().endswith("change it by hand\n" + setting)
    assert (tmp_path / "build.py").read_text() == BUILD


@pytest.mark.parametrize(
    "setting",
    [
        'ATTENTION = dict(type="HierarchicalConfig")\n',  # other packages have one, too
        'OLD = ["BlockSparseHierarchical"]\n',
        'TEXT = {"BlockSparseHierarchical": "type"}\n',
        'def f(type: str = "BlockSparseHierarchical"): ...\n',
    ],
)
def test_other_strings_of_a_file_without_the_package_are_not(setting: str, tmp_path: Path) -> None:
    make(tmp_path, {"config.py": setting, "build.py": BUILD})
    assert main([str(tmp_path)]) == 0
