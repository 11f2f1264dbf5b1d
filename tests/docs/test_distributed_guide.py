"""The figures of the guide to several GPUs: what moves, and how the work is shared out."""

from __future__ import annotations

import functools
import re

import pytest

from dilated_attention_pytorch import BlockLayout, SequenceSharding, SparsePatternConfig
from dilated_attention_pytorch.distributed.balance import chunks_of, row_costs
from dilated_attention_pytorch.distributed.plan import blocks_of, needed_blocks
from tests.docs.fences import ROOT

PAGE = (ROOT / "docs/guides/distributed.md").read_text("utf-8")
ROW = re.compile(
    r"^\| ([\d,]+) \| ([\d.]+) \| (\d+) \|((?: \d+ % moves, \+[\d.]+ % work \|){3})$", re.MULTILINE
)
BALANCES = ("contiguous", "zigzag", "cost")
BLOCK = 128


@functools.cache
def causal_layout(pattern: str, tokens: int, ratio: float) -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(pattern, BLOCK, ratio), tokens, causal=True)


def moved_and_imbalance(layout: BlockLayout, ranks: int, balance: str) -> tuple[float, float]:
    """Blocks that ranks fetch, over those of ring attention; what the dearest rank has over the mean."""
    tokens = layout.grid.q_len
    sharding = SequenceSharding.make(chunks_of(balance, row_costs(layout), ranks), tokens, BLOCK, 0)
    blocks = blocks_of(layout)
    fetched = needed_blocks(blocks.row, blocks.col, sharding).numel()
    return fetched / ((ranks - 1) * tokens // BLOCK), sharding.imbalance(layout)


def rows() -> list[tuple[int, float, int, list[tuple[str, str]]]]:
    return [
        (
            int(tokens.replace(",", "")),
            float(ratio),
            int(ranks),
            re.findall(r"(\d+) % moves, \+([\d.]+) %", cells),
        )
        for tokens, ratio, ranks, cells in ROW.findall(PAGE)
    ]


def test_rows_are_found() -> None:
    assert len(rows()) == PAGE.count("% moves,") / 3 >= 5


@pytest.mark.parametrize(("tokens", "ratio", "ranks", "cells"), rows())
def test_row_is_what_the_layout_says(
    tokens: int, ratio: float, ranks: int, cells: list[tuple[str, str]]
) -> None:
    layout = causal_layout("dilated_sparse", tokens, ratio)
    for balance, (moved, over) in zip(BALANCES, cells, strict=True):
        share, imbalance = moved_and_imbalance(layout, ranks, balance)
        assert float(moved) == pytest.approx(100 * share, abs=0.51), balance
        digits = 1 if "." in over else 0
        assert float(over) == pytest.approx(100 * imbalance, abs=0.51 * 10**-digits), balance


def test_local_window_moves_what_the_page_says() -> None:
    (said,) = re.findall(r"`local_window` moves least: ([\d.]+) % in the first case", PAGE)
    tokens, ratio, ranks, _ = rows()[0]
    share, _ = moved_and_imbalance(causal_layout("local_window", tokens, ratio), ranks, "cost")
    assert float(said) == pytest.approx(100 * share, abs=0.051)
