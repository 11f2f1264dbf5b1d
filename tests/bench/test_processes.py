"""Work shared by processes."""

from __future__ import annotations

import os

import pytest

from attention_bench.processes import in_processes


def where(number: int) -> tuple[int, int]:
    """The number, and the process that was asked."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number, os.getpid()


def test_results_come_in_order_from_other_processes() -> None:
    found = list(in_processes(where, range(8), 2))
    assert [number for number, _ in found] == list(range(8))
    assert os.getpid() not in {process for _, process in found}


def test_one_process_is_this_one() -> None:
    assert list(in_processes(where, [3], 1)) == [(3, os.getpid())]


@pytest.mark.parametrize("processes", [1, 2])
def test_error_of_a_process_is_raised(processes: int) -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        list(in_processes(where, [1, -1], processes))
