"""Calls that take turns: the time is that of the GPU, however long the host takes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from attention_bench import turns


class Gpu:
    """A GPU whose writes take 1 ms, and a host; `host` and `free` are when each has done what it was given."""

    def __init__(self) -> None:
        self.host, self.free, self.writes = 0.0, 0.0, 0

    def queue(self, ms: float) -> None:
        self.free = max(self.free, self.host) + ms

    def write(self) -> None:
        self.writes += 1
        self.queue(1.0)

    def call(self, host_ms: float, waits: bool = False) -> Callable[[], None]:
        """A call that the host launches in two halves, each of 0.25 ms on the GPU."""

        def run() -> None:
            for _ in range(2):
                self.host += host_ms / 2
                self.queue(0.25)
            if waits:
                self.host = max(self.host, self.free)

        return run

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        made = SimpleNamespace(at=0.0)
        made.record = lambda: setattr(made, "at", max(self.free, self.host))
        made.query = lambda: self.host >= made.at
        made.synchronize = lambda: setattr(self, "host", max(self.host, made.at))
        made.elapsed_time = lambda end: end.at - made.at
        return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: SimpleNamespace(zero_=made.write))
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    return made


def test_time_on_a_gpu_is_not_that_of_the_host(gpu: Gpu) -> None:
    assert turns.times_in_turn([gpu.call(0.1), gpu.call(5.0)], "cuda", rounds=3) == [0.5, 0.5]
    # of the slow call three more until 8 ms are written, then as many before every call
    assert gpu.writes == 1 + (1 + 2 + 4 + 8) + 4 * 8


def test_calls_that_wait_for_the_gpu_are_timed_all_the_same(gpu: Gpu) -> None:
    assert turns.times_in_turn([gpu.call(0.1, waits=True)], "cuda", rounds=2) == [0.5]
    assert gpu.writes == 1 + 2 + 4 + 8 + 16 + 32 + 32
