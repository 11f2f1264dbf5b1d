"""The running total of blocks, row by row against exact fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.patterns.budget import floor_share, ratio_budget

# 0.1 + 0.2 has 17 decimals, k / d up to 22, the smallest float 324
RATIOS: list[Any] = [
    0.01, 0.29, 0.1 + 0.2, 1234 / 56789, 3.7080984870958175e-05, 1e-30, 5e-324, 0.9999999999999999, 1.0, 1,
    Fraction(1, 3), Fraction(99999, 100000), Fraction(1, 10**40), Decimal("0.1000000000000000000001"),
]  # fmt: skip


def expected_budgets(ratio: Any, least: int, n_rows: int, n_cols: int, causal: bool) -> list[int]:
    exact, total, available, budgets = Fraction(str(ratio)), 0, 0, []
    for row in range(n_rows):
        blocks = row + 1 if causal else n_cols
        available += blocks
        now = max(total + min(least, blocks), available * exact.numerator // exact.denominator)
        budgets.append(now - total)
        total = now
    return budgets


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_every_row_is_that_of_exact_fractions(ratio: Any, causal: bool) -> None:
    for n in (1, 2, 63, 700):
        config = SparsePatternConfig("local_window", 16, ratio)
        layout = BlockLayout.from_config(config, 16 * n, causal=causal)
        assert [len(row) for row in layout.rows()] == expected_budgets(ratio, 2, n, n, causal)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    ratio=st.one_of(
        st.floats(5e-324, 1.0),
        st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(lambda pair: min(pair) / max(pair)),
        st.fractions(Fraction(1, 10**30), 1),
    ),
    least=st.integers(1, 20),
    n_rows=st.integers(1, 300),
    n_cols=st.integers(1, 300),
    causal=st.booleans(),
)
def test_budgets_of_any_ratio_are_exact(
    ratio: float | Fraction, least: int, n_rows: int, n_cols: int, causal: bool
) -> None:
    n_cols = n_rows if causal else n_cols
    grid = BlockGrid(16 * n_rows, 16 * n_cols, 16, causal)
    config = SparsePatternConfig(sparsity_ratio=ratio, min_blocks=least)  # type: ignore[arg-type]
    expected = expected_budgets(config.sparsity_ratio, least, n_rows, n_cols, causal)
    assert ratio_budget(config, grid).blocks().tolist() == expected


@pytest.mark.parametrize(
    ("kind", "causal", "least"),
    [
        ("dilated_sparse", True, 3),
        ("dilated_sparse", False, 2),
        ("local_window", True, 2),
        ("local_window", False, 2),
        ("global_local", True, 2),
        ("global_local", False, 2),
    ],
)
def test_least_of_a_row_by_default(kind: Any, causal: bool, least: int) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(kind, 16, 1e-9), 16 * 40, causal=causal)
    first = 1 if kind == "global_local" else 0  # its global row sees all
    assert [len(row) for row in layout.rows()[first:]] == [
        min(least, row + 1) if causal else least for row in range(first, 40)
    ]


@pytest.mark.parametrize("given", [0, -1, 2**31, 1.5, True, "2", [1]])
def test_least_must_be_a_number_of_blocks(given: Any) -> None:
    error = ValueError if type(given) is int else TypeError
    with pytest.raises(
        error, match=r"min_blocks must be a positive number of blocks per row, got .*; use 1 for"
    ):
        SparsePatternConfig(min_blocks=given)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    ratio=st.fractions(Fraction(1, 10**25), 1),
    totals=st.lists(st.integers(1, 2**40), min_size=1, max_size=20),
)
def test_share_of_large_totals_is_exact(ratio: Fraction, totals: list[int]) -> None:
    expected = [total * ratio.numerator // ratio.denominator for total in totals]
    assert floor_share(ratio, torch.tensor(totals)).tolist() == expected


def test_default_device_does_not_reach_the_budgets() -> None:
    grid = BlockGrid(640, 640, 64, True)
    with torch.device("meta"):
        found = ratio_budget(SparsePatternConfig(), grid).blocks()
    assert found.tolist() == ratio_budget(SparsePatternConfig(), grid).blocks().tolist()
