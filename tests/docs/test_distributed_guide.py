"""The figures of the guide to several GPUs: what moves, and how the work is shared out."""

from __future__ import annotations

import functools
import json
import re

import pytest

from dilated_attention_pytorch import BlockLayout, SequenceSharding, SparsePatternConfig
from dilated_attention_pytorch.distributed.balance import chunks_of, row_costs
from dilated_attention_pytorch.distributed.plan import blocks_of, needed_blocks
from tests.docs.fences import ROOT

PAGE = (ROOT / "docs/guides/distributed.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
ROW = re.compile(
    r"^\| ([\d,]+) \| ([\d.]+) \| (\d+) \|((?: \d+ % moves, \+[\d.]+ % work \|){3})$", re.MULTILINE
)
BALANCES = ("contiguous", "zigzag", "cost")
BLOCK = 128


@functools.cache
def layout_of(pattern: str, tokens: int, ratio: float, size: int = BLOCK, causal: bool = True) -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(pattern, size, ratio), tokens, causal=causal)


def moved_and_imbalance(layout: BlockLayout, ranks: int, balance: str) -> tuple[float, float]:
    """Blocks that ranks fetch, over those of ring attention; what the dearest rank has over the mean."""
    tokens, size = layout.grid.q_len, layout.block_size
    sharding = SequenceSharding.make(chunks_of(balance, row_costs(layout), ranks), tokens, size, 0)
    blocks = blocks_of(layout)
    fetched = needed_blocks(blocks.row, blocks.col, sharding).numel()
    return fetched / ((ranks - 1) * tokens // size), sharding.imbalance(layout)


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
    layout = layout_of("dilated_sparse", tokens, ratio)
    for balance, (moved, over) in zip(BALANCES, cells, strict=True):
        share, imbalance = moved_and_imbalance(layout, ranks, balance)
        assert float(moved) == pytest.approx(100 * share, abs=0.51), balance
        digits = 1 if "." in over else 0
        assert float(over) == pytest.approx(100 * imbalance, abs=0.51 * 10**-digits), balance


def test_local_window_moves_what_the_page_says() -> None:
    (said,) = re.findall(r"`local_window` moves least: ([\d.]+) % in the first case", WORDS)
    tokens, ratio, ranks, _ = rows()[0]
    share, _ = moved_and_imbalance(layout_of("local_window", tokens, ratio), ranks, "cost")
    assert float(said) == pytest.approx(100 * share, abs=0.051)


def test_block_sizes_move_what_the_page_says() -> None:
    said = re.search(
        r"8 ranks and all powers of two (\d+) % with blocks of 128, (\d+) % with blocks of 64; without "
        r"causality (\d+) % and (\d+) %",
        WORDS,
    )
    assert said is not None
    cases = [(128, True), (64, True), (128, False), (64, False)]
    for percent, (size, causal) in zip(said.groups(), cases, strict=True):
        layout = layout_of("dilated_sparse", 131_072, 0.01, size, causal)
        share, _ = moved_and_imbalance(layout, 8, "cost")
        assert float(percent) == pytest.approx(100 * share, abs=0.51)


def test_planned_shares_are_what_the_page_says() -> None:
    rows = json.loads((ROOT / "tools/attention-bench/results/plan.json").read_text("utf-8"))["rows"]
    shares: dict[bool, list[float]] = {True: [], False: []}
    tokens = []
    for row in rows:
        others = row["case"]["seqlen"] * (1 - 1 / row["ranks"])
        is_near = row["case"]["pattern_rates"] is not None
        shares[is_near].append(100 * row["mean_fetched_tokens"] / others)
        if is_near:
            tokens.append(row["mean_fetched_tokens"])
    assert re.search(r"most 3 % of the tokens of others, 2,000 to 41,000 of them", WORDS)
    assert round(max(shares[True])) == 3
    assert 2_000 <= min(tokens) < 2_500
    assert 40_500 < max(tokens) <= 41_000
    assert re.search(r"1.5 to 20 % of those tokens, and 75 % at 1,048,576 tokens and 1 %", WORDS)
    far = sorted(shares[False])
    assert (round(far[0], 1), round(far[-2]), round(far[-1])) == (1.5, 20, 75)


# ---- what was measured


def both_ms(peer: str, tokens: int, density: float) -> float:
    rows = json.loads((ROOT / "tools/attention-bench/results/h200x2-scaling.json").read_text("utf-8"))["rows"]
    found = [
        row["both_ms"]
        for row in rows
        if (row["part"], row["peer"], row["case"]["seqlen"], row["case"]["density"])
        == ("times", peer, tokens, density)
    ]
    return float(found[0])


def measured(pattern: str) -> list[float]:
    """The numbers of a sentence of the section."""
    section = " ".join(PAGE.split("## Measured")[1].split())
    found = re.search(pattern, section)
    assert found is not None, pattern
    return [float(x.replace(",", "")) for x in found.groups()]


def test_measured_sentences_are_those_of_the_file() -> None:
    results = json.loads((ROOT / "tools/attention-bench/results/h200x2-scaling.json").read_text("utf-8"))[
        "rows"
    ]
    ours = {
        (row["case"]["seqlen"], row["case"]["density"]): row
        for row in results
        if row["part"] == "times" and row["peer"] == "ours"
    }
    weak = [100 * ours[2_097_152, density]["weak_both"] for density in (0.01, 0.001)]
    assert measured(r"computes (\d+) % of the active blocks .* and (\d+) % at 0\.1 %") == [
        round(x) for x in weak
    ]

    def least_and_most(peer: str, cases: list[tuple[int, float]]) -> list[float]:
        shares = [both_ms(peer, *case) / both_ms("all-gather", *case) for case in cases]
        return [round(min(shares), 2), round(max(shares), 2)]

    long = [case for case in ours if case[0] >= 524_288]
    assert measured(r"([\d.]+) to ([\d.]+) of its time from 524,288") == least_and_most("ours", long)
    short = [case for case in ours if case[0] < 524_288]
    assert measured(r"took ([\d.]+) to ([\d.]+) of the time of the all-gather") == least_and_most(
        "ours, no overlap", short
    )
    case = 2_097_152, 0.01
    gain = 1 - both_ms("ours", *case) / both_ms("all-gather", *case)
    (gather,) = [
        row["forward_ms"]
        for row in results
        if row["peer"] == "all-gather" and (row["case"]["seqlen"], row["case"]["density"]) == case
    ]
    loss = ours[case]["forward_ms"] / gather - 1
    assert measured(r"2,097,152 tokens\), ([\d.]+) %, and the forward alone is ([\d.]+) % slower") == [
        round(100 * gain, 1),
        round(100 * loss, 1),
    ]
    ring = both_ms("ring, dense", 262_144, 0.01) / both_ms("ours", 262_144, 0.01)
    assert measured(r"262,144 tokens: (\d+) times as fast") == [round(ring)]
    over = [row["both_of_base"] - 1 for row in results if row["both_of_base"] is not None]
    assert measured(r"One rank\*\*: ([\d.]+) % over") == [round(100 * max(over), 1)]
