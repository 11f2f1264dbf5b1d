"""Names of a variant that come from another file of the project, or from its configuration."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from migrate_hierarchical.documents.plain import find_mentions
from tests.codemod.trees import make

CONSTANTS = """
import enum
import os

VARIANT = "hierarchical"
FINE = "base"
NAMES = ["base", "hierarchical"]
OPTIONS = {"variant": "hierarchical"}
CHOSEN = os.environ.get("VARIANT", "hierarchical")
OTHER = os.environ.get("VARIANT", "base")


class Variant(str, enum.Enum):
    OLD = "hierarchical"
    BASE = "base"
"""
IMPORT = "from dilated_attention_pytorch import create_block_sparse_attention\n"


@pytest.mark.parametrize(
    ("line", "argument", "marked"),
    [
        ("from app.const import VARIANT", "VARIANT", "HIER105"),
        ("from .const import VARIANT as V", "V", "HIER105"),
        ("from . import const", "const.VARIANT", "HIER105"),
        ("import app.const", "app.const.VARIANT", "HIER105"),
        ("import app.const as c", "variant=c.VARIANT", "HIER105"),
        ("from app.const import Variant", "Variant.OLD", "HIER105"),
        ("from app.const import Variant", "Variant.OLD.value", "HIER105"),
        ("from app.const import OPTIONS", "**OPTIONS", "HIER104"),
        ("from app.const import CHOSEN", "CHOSEN", "HIER105"),
        ("from app.const import VARIANT\nname = VARIANT", "name", "HIER105"),
        ("from app.const import NAMES\nfor name in NAMES:\n    pass", "name", "HIER105"),
        ("from app.again import VARIANT", "VARIANT", "HIER105"),
        ("from app.all import VARIANT", "VARIANT", "HIER105"),
        ("from app.const import FINE", "FINE", ""),
        ("from app.const import OTHER", "OTHER", ""),
        ("from app.const import Variant", "Variant.BASE", ""),
        ("from elsewhere import VARIANT", "VARIANT", ""),
        ("from app.const import VARIANT\nprint(VARIANT)", "'base'", ""),
    ],
)
def test_constants_of_other_files_are_followed(
    line: str, argument: str, marked: str, tmp_path: Path, capsys
) -> None:
    use = f"{IMPORT}{line}\nmodel = create_block_sparse_attention({argument})\n"
    files = {
        "app/__init__.py": "",
        "app/const.py": CONSTANTS,
        "app/again.py": "from .const import VARIANT\n",
        "app/all.py": "from app.const import *\n",
        "app/use.py": use,
    }
    make(tmp_path, files)
    alone = main([str(tmp_path / "app/use.py"), "--check"])  # as pre-commit may run it
    assert (marked in capsys.readouterr().out) == bool(marked) or not marked
    whole = main([str(tmp_path)])
    out = capsys.readouterr().out
    assert whole == (2 if marked else 0), out
    assert alone == (2 if marked else 0)
    if not marked:
        assert (tmp_path / "app/use.py").read_text() == use
        return
    assert f": {marked} " in out
    assert (tmp_path / "app/use.py").read_text() == use.replace(
        "model =", (tmp_path / "app/use.py").read_text().split("\n")[-3] + "\nmodel ="
    )
    assert main([str(tmp_path)]) == 2
    assert (tmp_path / "app/use.py").read_text().count("TODO") == 1


def test_choice_in_the_configuration_of_a_project_is_reported(tmp_path: Path, capsys) -> None:
    build = IMPORT + "\n\ndef build(cfg):\n    return create_block_sparse_attention(**cfg.attention)\n"
    make(tmp_path, {"build.py": build, "conf/model.yaml": "attention:\n  variant: hierarchical\n"})
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "model.yaml:2: HIER120" in out
    assert (tmp_path / "build.py").read_text() == build


@pytest.mark.parametrize("paths", [["conf/model.yaml"], ["conf"], ["conf/model.yaml", "run.sh"]])
@pytest.mark.parametrize("code", ["build.py", "notebook.ipynb", "deep/er/build.pyi"])
def test_configuration_alone_is_reported_as_with_the_code(
    code: str, paths: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    make(
        tmp_path,
        {"setup.cfg": "", code: IMPORT, "conf/model.yaml": "variant: hierarchical\n", "run.sh": "ls\n"},
    )
    monkeypatch.chdir(tmp_path)
    assert main(paths) == 2
    assert "model.yaml:1: HIER120" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"variant: hierarchical\n")))
    assert main(["-", "--stdin-filename", "conf/model.yaml"]) == 2


def test_configuration_of_another_project_is_none_of_ours(tmp_path: Path, capsys) -> None:
    make(
        tmp_path,
        {"build.py": "import sklearn\n", "model.yaml": "variant: hierarchical\npreset: hierarchical_x\n"},
    )
    assert main([str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a:\n  variant: hierarchical  # why\n", [2]),
        ("attention_variant: 'hierarchical'\n", [1]),
        ('{"model": {"variant": "hierarchical"}}', [1]),
        ('pattern_type = "hierarchical"\n', [1]),
        ("variants: [base, hierarchical]\n", [1]),
        ("variant:\n  - base\n  - hierarchical\nlinkage:\n  - hierarchical\n", [3]),
        ('"variants": [\n  "base",\n  "hierarchical"\n]\n', [3]),
        ("variant:\n  values: [base, hierarchical]\nother:\n  values: [hierarchical]\n", [2]),
        ("variant:\n  values:\n    - hierarchical\n", [3]),
        ("python train.py --variant hierarchical\n", [1]),
        ("python train.py model.variant=hierarchical\n", [1]),
        ("hierarchical_config:\n  levels: 3\n", [1]),
        ("preset: hierarchical_fine\n", [1]),
        ("name: hierarchical\nlinkage: hierarchical\n", []),
        ("variant: hierarchical-softmax\nvariants: hierarchically\n", []),
        ("variant: base  # not hierarchical\n", []),
    ],
)
def test_lines_of_configuration_that_choose_the_variant(text: str, lines: list[int]) -> None:
    assert [entry.line for entry in find_mentions(text.encode(), uses_package=True)] == lines
