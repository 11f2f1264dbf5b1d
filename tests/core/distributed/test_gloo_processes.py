"""The harness of the tests with processes: what it returns, what it says of failures, that nothing is left."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from tests.core.distributed.gloo_processes import NOT_ARRIVED, GlooProcesses, die, needs_gloo

pytestmark = [needs_gloo, pytest.mark.processes]  # each starts processes of its own


def sum_of_ranks(rank: int, size: int) -> torch.Tensor:
    x = torch.full((size,), rank + 1)
    torch.distributed.all_reduce(x)
    return x


def fail_on_last(rank: int, way: str) -> int:
    if rank == 1:
        if way == "raise":
            print("said before the end")
            raise ValueError("the last rank fails")
        if way == "die":
            die()
        time.sleep(100)
    return rank


def test_processes_return_fail_and_leave_nothing() -> None:
    with GlooProcesses(2) as processes:
        assert [x.tolist() for x in processes.run(sum_of_ranks, 2)] == [[3, 3], [3, 3]]
        first = processes.processes[0].pid
        assert [x.tolist() for x in processes.run(sum_of_ranks, 1)] == [[3], [3]]
        assert processes.processes[0].pid == first

        began = time.monotonic()
        fine, late = processes.outcomes(fail_on_last, "sleep", limit=1)
        assert time.monotonic() - began < 10
        assert (fine.value, late.error) == (0, NOT_ARRIVED)
        assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("way", "told"), [("raise", "ValueError.*the last rank fails"), ("die", "rank 1: died.*exit code -9")]
)
def test_failure_names_rank_and_reason(way: str, told: str) -> None:
    with GlooProcesses(2) as processes, pytest.raises(AssertionError, match=told) as caught:
        processes.run(fail_on_last, way)
    assert ("said before the end" in str(caught.value)) == (way == "raise")
    assert not multiprocessing.active_children()
