"""Calls that take turns, each after other memory was written, so that what a call reads is in no cache.

On a GPU the time is that of the GPU: it still writes when the host has launched all of the call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .measure import one_line
from .outcome import PeerRow
from .timing import call_ms

RowType = TypeVar("RowType", bound=PeerRow)
WRITTEN_BYTES = {"cuda": 2**30, "cpu": 2**20}  # many times what caches hold
MOST_PASSES = 32  # over what is written before a call; one that waits for the GPU is never launched early


class TurnClock:
    """Times calls; all begin with the same caches."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.passes = 1
        self._written = torch.empty(WRITTEN_BYTES[device] // 4, dtype=torch.int32, device=device)

    def ms(self, call: Callable[[], object]) -> float:
        """Milliseconds of a call. Where the GPU waited for the host, it is made again after twice the writes."""
        while True:
            for _ in range(self.passes):
                self._written.zero_()
            if self.device != "cuda":
                return call_ms(call, self.device)[1]
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            is_launched_early = not start.query()
            end.synchronize()
            if is_launched_early or self.passes >= MOST_PASSES:
                return float(start.elapsed_time(end))
            self.passes *= 2


def times_in_turn(calls: Sequence[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Median milliseconds of calls made in turn, see `TurnClock`."""
    clock = TurnClock(device)
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for i_round in range(rounds):
        in_order = list(zip(calls, times, strict=True))
        for call, found in in_order[::-1] if i_round % 2 else in_order:
            found.append(clock.ms(call))
    return [statistics.median(found) for found in times]


def work(row: PeerRow, call: Callable[[], object], what: str = "") -> bool:
    """Whether a call runs; where it fails, the row says why."""
    try:
        call()
    except Exception as error:  # a peer that fails is a row of the table, not the end of the run
        row.refused = what + one_line(error)
        return False
    return True
