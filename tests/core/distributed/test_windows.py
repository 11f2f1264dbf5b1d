"""Windows on a circle of blocks, against lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilated_attention_pytorch.distributed import windows
from dilated_attention_pytorch.distributed.windows import CircleOfBlocks, Window
from tests.core import pattern_cases  # noqa: F401  the hypothesis profile

COSTS = st.lists(st.integers(0, 9), min_size=8, max_size=40)
RUNS = [(0, 2), (3, 4), (5, 8)]  # so block 8 and those behind are no longer there
BLOCKS = [0, 1, 3, 5, 6, 7]


def around(start: int, length: int) -> list[int]:
    """The blocks of a window."""
    return [BLOCKS[place % len(BLOCKS)] for place in range(start, start + length)]


@given(COSTS, st.integers(1, 6))
def test_windows_cost_what_their_blocks_do(costs: list[int], length: int) -> None:
    circle = CircleOfBlocks(torch.tensor(costs), RUNS)
    assert (circle.length, circle.cost) == (len(BLOCKS), sum(costs[block] for block in BLOCKS))
    found = circle.costs(torch.arange(circle.length), length).tolist()
    assert found == [sum(costs[block] for block in around(start, length)) for start in range(circle.length)]


@pytest.mark.parametrize("length", range(7))
@pytest.mark.parametrize("start", range(6))
def test_a_window_is_cut_out(start: int, length: int) -> None:
    circle = CircleOfBlocks(torch.arange(9), RUNS)
    taken = circle.take(Window(start, length))
    assert sorted(block for first, stop in taken for block in range(first, stop)) == sorted(
        around(start, length)
    )
    left = [block for first, stop in circle.runs for block in range(first, stop)]
    assert left == [block for block in BLOCKS if block not in around(start, length)]
    assert (circle.length, circle.cost) == (len(left), sum(left))
    assert not circle.holds_last


def test_chunks_are_parts_of_runs_and_the_rests_of_those_cut() -> None:
    circle = CircleOfBlocks(torch.arange(9), RUNS)
    assert circle.chunks(torch.arange(6), 2).tolist() == [1, 3, 3, 2, 2, 4]
    # whole run; 1|3 ends one; 3|5 cuts the last; 5 6, 6 7 cut it; 7|0 cuts both
    assert circle.chunks(torch.arange(6), 6).tolist()[0] == 3


@given(COSTS, st.integers(1, 8), st.integers(0, 60), st.integers(1, 5))
def test_the_closest_window_is_found(costs: list[int], length: int, cost: int, step: int) -> None:
    circle = CircleOfBlocks(torch.tensor(costs), [(0, len(costs))])
    of_all = circle.costs(torch.arange(circle.length), length)
    found = circle.closest(length, cost, step)
    assert found.miss == int((of_all - cost).abs().min()) // step
    assert abs(int(of_all[found.start]) - cost) // step == found.miss


def test_between_samples_the_window_that_fits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_SAMPLES", 10)
    circle = CircleOfBlocks(torch.arange(1000), [(0, 1000)])
    for start in (123, 456, 789):
        cost = sum(range(start, start + 100))
        assert circle.closest(100, cost, 1) == Window(start, 100, 0)


@given(COSTS, st.integers(0, 8), st.integers(0, 60))
def test_the_longest_window_that_one_can_pay_for_is_found(costs: list[int], most: int, cost: int) -> None:
    circle = CircleOfBlocks(torch.tensor(costs), [(0, len(costs))])
    starts = torch.arange(circle.length)
    payable = [n for n in range(1, most + 1) if int(circle.costs(starts, n).min()) <= cost]
    found = circle.longest(most, cost)
    assert found.length == max(payable, default=0)
    if found.length:
        assert int(circle.costs(torch.tensor([found.start]), found.length)) <= cost
