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
from dilated_attention_pytorch.patterns.budget import floor_share, row_budgets
from dilated_attention_pytorch.patterns.grid import BlockGrid

# 0.1 + 0.2 has 17 decimals, k / d up to 22, the smallest float 324
RATIOS: list[Any] = [
    0.01, 0.29, 0.1 + 0.2, 1234 / 56789, 3.7080984870958175e-05, 1e-30, 5e-324, 0.9999999999999999, 1.0, 1,
    Fraction(1, 3), Fraction(99999, 100000), Fraction(1, 10**40), Decimal("0.1000000000000000000001"),
]  # fmt: skip


def expected_budgets(ratio: Any, n_rows: int, n_cols: int, causal: bool) -> list[int]:
    exact, total, available, budgets = Fraction(str(ratio)), 0, 0, []
    for row in range(n_rows):
        available += row + 1 if causal else n_cols
        now = max(total + 1, available * exact.numerator // exact.denominator)
        budgets.append(now - total)
        total = now
    return budgets


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_every_row_is_that_of_exact_fractions(ratio: Any, causal: bool) -> None:
    for n in (1, 2, 63, 700):
        layout = BlockLayout.from_config(
            SparsePatternConfig("local_window", 16, ratio), 16 * n, causal=causal
        )
        assert [len(row) for row in layout.rows()] == expected_budgets(ratio, n, n, causal)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    ratio=st.one_of(
        st.floats(5e-324, 1.0),
        st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(lambda pair: min(pair) / max(pair)),
        st.fractions(Fraction(1, 10**30), 1),
    ),
    n_rows=st.integers(1, 300),
    n_cols=st.integers(1, 300),
    causal=st.booleans(),
)
def test_budgets_of_any_ratio_are_exact(
    ratio: float | Fraction, n_rows: int, n_cols: int, causal: bool
) -> None:
    n_cols = n_rows if causal else n_cols
    grid = BlockGrid(16 * n_rows, 16 * n_cols, 16, causal)
    assert row_budgets(ratio, grid).tolist() == expected_budgets(ratio, n_rows, n_cols, causal)


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
        found = row_budgets(0.3, grid)
    assert found.tolist() == row_budgets(0.3, grid).tolist()
