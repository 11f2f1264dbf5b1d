"""Modules of the user's own whose `__getattr__` gives removed names when they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

NAMED = (
    "def __getattr__(name):\n    if name == 'HierarchicalConfig':\n"
    "        from dilated_attention_pytorch import HierarchicalConfig\n\n        return HierarchicalConfig\n"
    "    raise AttributeError(name)\n"
)
ANY = "import dilated_attention_pytorch\n\n\ndef __getattr__(name):\n    return getattr(dilated_attention_pytorch, name)\n"
TABLE = (
    "import importlib\n\nMODULES = {'HierarchicalConfig': 'dilated_attention_pytorch'}\n\n\n"
    "def __getattr__(name):\n    return getattr(importlib.import_module(MODULES[name]), name)\n"
)
OWN = (
    "import importlib\n\nimport dilated_attention_pytorch\n\nMODULES = {'HierarchicalConfig': '.config'}\n\n\n"
    "def __getattr__(name):\n    return getattr(importlib.import_module(MODULES[name], __name__), name)\n"
)


@pytest.mark.parametrize("lazy", [NAMED, ANY, TABLE])
@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("from app import HierarchicalConfig\n\nx = HierarchicalConfig()\n", "HIER108"),
        ("from app import HierarchicalConfig as H\n\nx = H()\n", "HIER108"),
        ("from again import H\n\nx = H()\n", "HIER108"),
        ("import app\n\nx = app.HierarchicalConfig()\n", "HIER109"),
    ],
)
@pytest.mark.parametrize(
    "order", [["."], ["use.py"], ["use.py", "app/__init__.py"], ["app/__init__.py", "use.py"]]
)
def test_what_is_taken_from_there_is_reported(
    order: list[str], use: str, reason: str, lazy: str, tmp_path: Path, monkeypatch
) -> None:
    again = "from app import HierarchicalConfig as H\n"
    make(tmp_path, {"setup.cfg": "", "app/__init__.py": lazy, "again.py": again, "use.py": use})
    monkeypatch.chdir(tmp_path)
    for path in order:
        main([path])
    new = (tmp_path / "use.py").read_text()
    assert new.count("# TODO") == new.count(reason) == 1
    assert main(["."]) == 2
    assert (tmp_path / "use.py").read_text() == new


@pytest.mark.parametrize(
    ("lazy", "use"),
    [
        (OWN, "from app import HierarchicalConfig\n\nx = HierarchicalConfig()\n"),
        (NAMED.replace("dilated_attention_pytorch", "another"), "from app import HierarchicalConfig\n"),
        (NAMED.replace("__getattr__", "get"), "from app import get\n"),
    ],
)
def test_own_names_are_not(lazy: str, use: str, tmp_path: Path) -> None:
    files = {"app/__init__.py": lazy, "app/config.py": "class HierarchicalConfig:\n    pass\n", "use.py": use}
    make(tmp_path, files)
    main([str(tmp_path)])
    assert (tmp_path / "use.py").read_text() == use


@pytest.mark.parametrize("lazy", [NAMED, ANY])
def test_star_takes_what_is_bound(lazy: str, tmp_path: Path) -> None:
    use = "from app import *\n\nx = HierarchicalConfig\n"
    make(tmp_path, {"app/__init__.py": lazy, "use.py": use})
    main([str(tmp_path)])
    assert (tmp_path / "use.py").read_text() == use
