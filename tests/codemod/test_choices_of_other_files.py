"""Names of a variant that only another file of the project knows, where the file that asks for one has no literal."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

FROM = "from dilated_attention_pytorch import "
ASKS = "def f(cfg):\n    return create_block_sparse_attention({})\n"
OPTION = "import argparse\n\np = argparse.ArgumentParser()\np.add_argument('--attention-variant', {})\n"
BUILD = "def build(v):\n    return create_block_sparse_attention(v)\n\n\nif debug:\n    build('base')\n"
MODEL = (
    "class Model:\n    def __init__(self, v):\n        self.v = v\n\n"
    "    def f(self):\n        return create_block_sparse_attention(variant=self.v)\n"
)


def project(folder: Path, holder: str, asks: str) -> None:
    files = {"app/__init__.py": "", "app/holder.py": holder, "asks.py": FROM + asks}
    make(folder, {"setup.cfg": "", **files})


@pytest.mark.parametrize("order", [["."], ["asks.py"], ["app/holder.py", "asks.py"]])
@pytest.mark.parametrize(
    ("holder", "asks"),
    [
        ("class Config:\n    variant: str = 'hierarchical'\n", ASKS.format("cfg.variant")),
        ("class Config:\n    variant: Literal['base', 'hierarchical']\n", ASKS.format("variant=cfg.variant")),
        ("VALUES = {'variant': 'hierarchical'}\n", ASKS.format("cfg['variant']")),
        ("VALUES = {'variant': 'hierarchical'}\n", ASKS.format("cfg.get('variant')")),
        ("VALUES = {'variant': 'hierarchical'}\n", ASKS.format("**cfg")),
        ("def f(model):\n    model.variant = 'hierarchical'\n", ASKS.format("getattr(cfg, 'variant')")),
        (OPTION.format("default='hierarchical'"), ASKS.format("cfg.attention_variant")),
        (OPTION.format("choices=['base', 'hierarchical']"), ASKS.format("cfg.attention_variant")),
        (
            "import os\n\nos.environ.setdefault('VARIANT', 'hierarchical')\n",
            ASKS.format("os.environ['VARIANT']"),
        ),
        (
            "def chosen():\n    return 'hierarchical'\n",
            "from app.holder import chosen\n" + ASKS.format("chosen()"),
        ),
        ("from asks import build\n\nbuild('hierarchical')\n", BUILD),
        ("from asks import build\n\nfor each in ['base', 'hierarchical']:\n    build(each)\n", BUILD),
        ("import asks\n\nasks.Model(v='hierarchical')\n", MODEL),
    ],
)
def test_name_that_another_file_keeps_is_reported(
    holder: str, asks: str, order: list[str], tmp_path: Path, monkeypatch
) -> None:
    project(tmp_path, holder, "create_block_sparse_attention\n\n\n" + asks)
    monkeypatch.chdir(tmp_path)
    for path in order:
        main([path])
    new = (tmp_path / "asks.py").read_text()
    assert new.count("HIER105") + new.count("HIER104") == 1
    assert (tmp_path / "app/holder.py").read_text() == holder
    assert main(["."]) == main(["asks.py"]) == 2
    assert (tmp_path / "asks.py").read_text() == new


@pytest.mark.parametrize(
    ("name", "call"),
    [("get_block_sparse_preset", "(cfg.kind)"), ("SparsePatternConfig", "(pattern_type=cfg.kind)")],
)
def test_presets_and_patterns_are_too(name: str, call: str, tmp_path: Path) -> None:
    project(
        tmp_path, "kind = 'hierarchical_fine'\n", f"{name} as make\n\n\ndef f(cfg):\n    return make{call}\n"
    )
    assert main([str(tmp_path / "asks.py")]) == 2
    assert "HIER105" in (tmp_path / "asks.py").read_text()


@pytest.mark.parametrize(
    "holder",
    [
        "variant = 'base'\n",
        "linkage = 'hierarchical'\n",
        "import sklearn\n\nsklearn.cluster(variant='hierarchical')\n",
        "def cluster(variant):\n    return variant\n\n\ncluster(variant='hierarchical')\n",
        "logger = get_logger(name='hierarchical')\n",
        '"""variant: hierarchical"""\n',
        FROM + "create_block_sparse_attention as f\n\nvariant = f('hierarchical')\n",
        "# migrate-hierarchical: skip-file\nlinkage = 'hierarchical'\n",
    ],
)
def test_other_names_say_nothing(holder: str, tmp_path: Path) -> None:
    asks = "create_block_sparse_attention\n\n\ndef f(variant):\n    return create_block_sparse_attention(variant)\n"
    project(tmp_path, holder, asks)
    for path in ("asks.py", "", "asks.py"):
        assert main([str(tmp_path / path)]) == 0
    assert (tmp_path / "asks.py").read_text() == FROM + asks


def test_a_very_long_sum_elsewhere_stops_nothing(tmp_path: Path) -> None:
    holder = "x = " + " + ".join(["1"] * 5000) + "\nvariant = 'hierarchical'\n"
    project(tmp_path, holder, "create_block_sparse_attention\n\n\n" + ASKS.format("cfg.variant"))
    assert main([str(tmp_path / "asks.py")]) in (0, 2)
