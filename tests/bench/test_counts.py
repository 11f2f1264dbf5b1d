"""Nouns after numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attention_bench.counts import counted
from attention_bench.environment import environment, footnote
from attention_bench.presets import PRESETS


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 queries"), (1, "1 query"), (2, "2 queries"), (4096, "4,096 queries")]
)
def test_noun_is_plural_unless_the_count_is_one(count: int, text: str) -> None:
    assert counted(count, "query", "queries") == text


@pytest.mark.parametrize(("threads", "text"), [(1, ", 1 thread, "), (2, ", 2 threads, ")])
def test_footnote_of_a_run_says_its_threads(threads: int, text: str) -> None:
    assert text in footnote({**environment("cpu", ""), "threads": threads})


def test_label_of_a_sequence_of_one_token() -> None:
    case = PRESETS["quick"][0]
    assert replace(case, seqlen=1).label.startswith("1 token, ")
    assert replace(case, seqlen=1, causal=True, decode=True).label.startswith("1 query, 1 key, ")
