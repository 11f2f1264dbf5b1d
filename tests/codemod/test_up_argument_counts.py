"""Calls with any number of positional arguments, also more than the old signature has."""

from __future__ import annotations

import ast

import pytest

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.removed_api import REMOVED_NAMES
from migrate_hierarchical.upstream.old_api import OLD_PARAMETERS, RENAMED
from tests.codemod.test_up_fixtures import SETTINGS

OTHERS = [name for name in OLD_PARAMETERS if name not in REMOVED_NAMES]


def migrated(name: str, arguments: str):
    source = f"from dilated_attention_pytorch import {name}\nresult = {name}({arguments})\n"
    result = migrate_bytes("x.py", source.encode(), SETTINGS)
    assert result.error is None
    return (result.new or source.encode()).decode(), {entry.rule for entry in result.left}


@pytest.mark.parametrize("first", ["x0", "[2048]"])
@pytest.mark.parametrize("name", OLD_PARAMETERS)
def test_any_number_of_positional_arguments(name: str, first: str) -> None:
    for count in range(21):
        arguments = ", ".join([first, *(f"x{place}" for place in range(1, 20))][:count])
        new, left = migrated(name, arguments)
        ast.parse(new)
        if count > len(OLD_PARAMETERS[name]) and name in OTHERS:
            assert "UP105" in left
            assert f"result = {RENAMED.get(name, name)}({arguments})\n" in new


@pytest.mark.parametrize("name", OTHERS)
def test_a_keyword_that_means_nothing_goes_and_the_unknown_positions_stay(name: str) -> None:
    arguments = ", ".join(["[2048]", *(f"x{place}" for place in range(1, 20))])
    new, left = migrated(name, f"{arguments}, enable_memory_pool=True")
    rest = ", enable_memory_pool=True" if name in ("SparsePatternConfig", "DistributedSparseConfig") else ""
    assert f"result = {RENAMED.get(name, name)}({arguments}{rest})\n" in new
    assert "UP105" in left
