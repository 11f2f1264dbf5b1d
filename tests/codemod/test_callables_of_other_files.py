"""The factory, the presets and the patterns under names that another file of the project gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.cli import main
from tests.codemod.trees import make

FACTORY = """\
from functools import partial

from dilated_attention_pytorch import create_block_sparse_attention, get_block_sparse_preset as preset

build = create_block_sparse_attention
short: object = partial(create_block_sparse_attention, segment_lengths=[2048])
BUILDERS = {"block": create_block_sparse_attention}
model = create_block_sparse_attention("base")
"""
FILES = {
    "setup.cfg": "",
    "app/__init__.py": "from .factory import build\n",
    "app/factory.py": FACTORY,
    "app/again.py": "from .factory import short as brief\n",
}


@pytest.mark.parametrize("order", [["."], ["app/use.py"], ["app/factory.py", "app/use.py"]])
@pytest.mark.parametrize(
    "use",
    [
        "from app.factory import build\n\nx = build('hierarchical')\n",
        "from .factory import build as b\n\nx = b(variant='hierarchical')\n",
        "from app.factory import short\n\nx = short(hierarchical_config=None)\n",
        "from app.factory import BUILDERS\n\nx = BUILDERS['block']('hierarchical')\n",
        "from app.factory import *\n\nx = build('hierarchical')\n",
        "from app.again import brief\n\nx = brief('hierarchical')\n",
        "from app import build\n\nx = build('hierarchical')\n",
        "from app.factory import build\n\nmine = build\nx = mine('hierarchical')\n",
        "import app.factory\n\nx = app.factory.build('hierarchical')\n",
        "import app.factory as f\n\nx = f.create_block_sparse_attention('hierarchical')\n",
        "from app import factory\n\nx = factory.preset('hierarchical_fine')\n",
        "from . import factory\n\nNAME = 'hierarchical'\nx = factory.short(NAME)\n",
    ],
)
def test_removed_name_given_to_one_is_reported(
    use: str, order: list[str], tmp_path: Path, monkeypatch
) -> None:
    make(tmp_path, {**FILES, "app/use.py": use})
    monkeypatch.chdir(tmp_path)
    for path in order:
        main([path])
    new = (tmp_path / "app/use.py").read_text()
    assert new.count("# TODO") == new.count("HIER113") + new.count("HIER105") == 1
    assert main(["."]) == main(["app/use.py"]) == 2
    assert (tmp_path / "app/use.py").read_text() == new
    assert (tmp_path / "app/factory.py").read_text() == FACTORY


@pytest.mark.parametrize(
    "use",
    [
        "from app.factory import build\n\nx = build('base')\nprint('hierarchical')\n",
        "from app.factory import model\n\nx = model.run('hierarchical')\n",
        "from app.factory import partial\n\nx = partial('hierarchical')\n",
        "from elsewhere import build\n\nx = build('hierarchical')\n",
        "from app.factory import build\n\n\ndef f(build):\n    return build('hierarchical')\n",
    ],
)
def test_other_callables_are_not(use: str, tmp_path: Path) -> None:
    make(tmp_path, {**FILES, "app/use.py": use})
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "app/use.py").read_text() == use
