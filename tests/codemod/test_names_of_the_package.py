"""What the package has now is never taken for something that is gone, whatever its name begins with."""

from __future__ import annotations

import pytest

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.test_up_fixtures import ALL

package = pytest.importorskip("dilated_attention_pytorch")


@pytest.mark.parametrize("select", [(), ALL], ids=["HIER", "UP"])
@pytest.mark.parametrize("name", [name for name in package.__all__ if not name.startswith("_")])
def test_a_name_is_left_alone(name: str, select: tuple[str, ...]) -> None:
    source = (
        f"from dilated_attention_pytorch import {name}\nimport dilated_attention_pytorch as dap\n"
        f"from dilated_attention_pytorch import {name} as other\nx = [{name}, dap.{name}, other]\n"
    )
    result = migrate_bytes("x.py", source.encode(), Settings(select=select))
    assert (result.new, result.left) == (None, [])
