"""Calls that take turns, each after other memory was written, so that what a call reads is in no cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .measure import one_line
from .outcome import PeerRow
from .timing import call_ms

RowType = TypeVar("RowType", bound=PeerRow)
WRITTEN_BYTES = {
    "cuda": 2**30,
    "cpu": 2**20,
}  # before every call; on a GPU this takes longer than the host does


def times_in_turn(calls: Sequence[Callable[[], object]], device: str, rounds: int) -> list[float]:
    """Median milliseconds of calls made in turn, each after other memory was written."""
    written = torch.empty(WRITTEN_BYTES[device] // 4, dtype=torch.int32, device=device)
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for i_round in range(rounds):
        in_order = list(zip(calls, times, strict=True))
        for call, found in in_order[::-1] if i_round % 2 else in_order:
            written.zero_()
            found.append(call_ms(call, device)[1])
    return [statistics.median(found) for found in times]


def work(row: PeerRow, call: Callable[[], object], what: str = "") -> bool:
    """Whether a call runs; where it fails, the row says why."""
    try:
        call()
    except Exception as error:  # a peer that fails is a row of the table, not the end of the run
        row.refused = what + one_line(error)
        return False
    return True
