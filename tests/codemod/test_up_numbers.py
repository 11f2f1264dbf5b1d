"""Ratios that are names and arithmetic are followed with bounded work."""

from __future__ import annotations

import time

import pytest

from migrate_hierarchical.engine import migrate_bytes
from tests.codemod.test_up_fixtures import SETTINGS

HEAD = "from dilated_attention_pytorch import SparsePatternConfig\n"


def details(before: str, ratio: str) -> list[str]:
    source = f"{HEAD}{before}config = SparsePatternConfig('dilated_sparse', sparsity_ratio={ratio})\n"
    result = migrate_bytes("x.py", source.encode(), SETTINGS)
    assert result.error is None
    return [entry.detail for entry in result.left if entry.rule == "UP102"]


@pytest.mark.parametrize(
    ("before", "ratio", "value"),
    [
        ("RATIO = 0.95\n", "RATIO", ", 0.95"),
        ("", "1 - 0.05", ", 0.95"),
        ("", "0.95", ""),
        ("if fast:\n    r = 0.9\nelse:\n    r = 0.95\n", "r", ", 0.9 or 0.95"),
    ],
)
def test_the_report_says_the_value(before: str, ratio: str, value: str) -> None:
    assert details(before, ratio) == [f"sparsity_ratio={ratio}{value}"]


def test_many_values_of_a_name_take_little_time() -> None:
    begin = time.process_time()
    details("x = 0.9\n" + "x = x * x + x / x\n" * 200, "x * x * x - x")
    assert time.process_time() - begin < 20  # followed from every place again, it would take years
