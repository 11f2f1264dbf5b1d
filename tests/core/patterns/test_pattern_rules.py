"""The rules chosen in tools/pattern-rules are those of the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

SEARCH = Path(__file__).parents[3] / "tools" / "pattern-rules" / "search.py"


@pytest.fixture(scope="module")
def search() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search", SEARCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rates", [None, (1, 2, 4, 8), (2, 3, 5)])
@pytest.mark.parametrize("blocks", [2, 3, 5])
@pytest.mark.parametrize("n", [8, 64, 100])
def test_chosen_rules_are_those_of_the_package(
    search: ModuleType, n: int, blocks: int, rates: tuple[int, ...] | None
) -> None:
    config = SparsePatternConfig(sparsity_ratio=1e-9, dilation_rates=rates, min_blocks=blocks)
    causal = search.causal_rows(search.by_van_der_corput, rates, n, blocks)
    assert BlockLayout.from_config(config, 64 * n, causal=True).rows() == causal
    other = search.other_rows(search.runs_by_ruler, search.signs_in_turn, rates, n, blocks)
    assert BlockLayout.from_config(config, 64 * n).rows() == other
