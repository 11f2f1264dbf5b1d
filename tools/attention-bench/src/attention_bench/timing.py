"""Time and memory of long calls, of which a few suffice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from .measure import free

Result = TypeVar("Result")


class Timed(NamedTuple):
    """Figures of a call; memory is None on a CPU.

    ms: median time. peak_bytes: peak memory above the memory in use before. total_bytes: peak memory.
    """

    ms: float
    peak_bytes: int | None
    total_bytes: int | None


def call_ms(call: Callable[[], Result], device: str) -> tuple[Result, float]:
    """The result of a call and its milliseconds: CUDA events on a GPU, the wall clock on a CPU."""
    if device != "cuda":
        begin = time.perf_counter()
        return call(), (time.perf_counter() - begin) * 1000
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    result = call()
    end.record()
    end.synchronize()
    return result, float(start.elapsed_time(end))


def timed(call: Callable[[], Result], device: str, repeats: int) -> tuple[Result, Timed]:
    """The last result and the figures of a call, after a warm-up call; holds one result at a time."""
    free(device)
    before = 0
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    call()
    times = [call_ms(call, device)[1] for _ in range(repeats - 1)]
    result, ms = call_ms(call, device)
    times.append(ms)
    if device != "cuda":
        return result, Timed(statistics.median(times), None, None)
    total = torch.cuda.max_memory_allocated()
    return result, Timed(statistics.median(times), total - before, total)
