"""docs/reference.md has every environment variable of the library, with its values and its default."""

from __future__ import annotations

import re

from dilated_attention_pytorch.environment_settings import PREFIX, SETTINGS
from tests.docs.fences import ROOT

SOURCE = ROOT / "packages/dilated-attention-pytorch/src"


def rows() -> dict[str, list[str]]:
    text = (ROOT / "docs/reference.md").read_text("utf-8").partition("## Environment variables")[2]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `" in line
    ]
    return {name.strip("`"): rest for name, *rest in cells}


def test_every_variable_of_the_source_is_in_the_table() -> None:
    name = re.compile(rf"{PREFIX}[A-Z_]+[A-Z]")
    spelled = {found for file in SOURCE.rglob("*.py") for found in name.findall(file.read_text("utf-8"))}
    names = {setting.name for setting in SETTINGS}
    assert spelled <= names
    assert {found for found in rows() if found.startswith(PREFIX)} == names


def test_values_and_defaults_are_those_of_the_code() -> None:
    table = rows()
    for setting in SETTINGS:
        allowed, default, *_ = table[setting.name]
        assert re.findall("`(.*?)`", allowed) == list(setting.choices)
        assert ("number" in allowed) == (setting.numbers is not None)
        assert default == f"`{setting.default}`"
