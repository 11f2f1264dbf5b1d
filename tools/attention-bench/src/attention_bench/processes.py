"""Processes of a command that work at the same time, each with its own Python."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that waits for the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_processes(
    function: Callable[[Work], Result], work: Iterable[Work], processes: int
) -> Iterator[Result]:
    """`function` of each piece of work, in their order; all of it must be picklable. A single process is this one."""
    if processes == 1:
        yield from map(function, work)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(processes, context, ignore_interrupts) as pool:
        yield from pool.map(function, work)
