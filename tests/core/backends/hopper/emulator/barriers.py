"""mbarriers: arrivals and bytes that complete a phase, and the parity that a wait names."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layouts import MBarrierLayout
from .schedule import MOST_PARTITIONS, EmulatorError, current, scheduler
from .tensors import base_value, to_tensor


class Barrier(base_value):
    """One mbarrier."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0  # arrivals of a phase
        self.pending = 0
        self.bytes = 0  # expected and not yet there
        self.phase = 0  # how many are complete
        # vector clocks of the arrivals of this phase, and of all that are complete
        self.arriving = np.zeros(MOST_PARTITIONS, np.int64)
        self.before = np.zeros(MOST_PARTITIONS, np.int64)

    shape = (1,)

    def __repr__(self) -> str:
        return f"{self.name} (phase {self.phase}, {self.pending} of {self.count} arrivals and {self.bytes} bytes to come)"

    def index(self, i: Any) -> Barrier:
        if int(i):
            raise EmulatorError(f"index {i} of one barrier {self.name}")
        return self

    def arrive(self, count: int) -> None:
        if not self.count:
            raise EmulatorError(f"barrier {self.name} is used before mbarrier.init")
        if count > self.pending:
            raise EmulatorError(f"barrier {self} gets {count} more arrivals")
        self.pending -= count
        np.maximum(self.arriving, current().release(), out=self.arriving)
        self.complete()

    def arrived(self, n_bytes: int, before: Any) -> None:
        """Bytes of a copy have arrived, after what has happened before its start."""
        self.bytes -= n_bytes
        np.maximum(self.arriving, before, out=self.arriving)
        self.complete()

    def complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            np.maximum(self.before, self.arriving, out=self.before)
            self.arriving[:] = 0
            self.pending = self.count
        elif self.pending == 0 and self.bytes < 0:
            raise EmulatorError(f"barrier {self}: more bytes than expected")

    def is_past(self, parity: int) -> bool:
        """Whether the phase of this parity is complete."""
        return self.phase & 1 != parity


def init(barrier: Barrier, count: Any) -> None:
    if barrier.count:
        raise EmulatorError(f"barrier {barrier.name} is initialised twice")
    barrier.count = barrier.pending = int(count)


def invalidate(barrier: Barrier) -> None:
    barrier.count = barrier.pending = 0


def expect(barrier: Barrier, bytes_per_cta: Any = None, pred: Any = True, **named: Any) -> None:
    if not to_tensor(pred):
        return
    scheduler().pause()
    barrier.bytes += int(named.get("bytes", bytes_per_cta))
    barrier.arrive(1)


def arrive(barrier: Barrier, *, count: Any = 1, pred: Any = True, **_: Any) -> None:
    if not to_tensor(pred):
        return
    scheduler().pause()
    barrier.arrive(int(count))


def wait(barrier: Barrier, phase: Any, pred: Any = True, deps: Any = ()) -> None:
    if not to_tensor(pred):
        return
    parity = int(phase)
    if parity not in (0, 1):
        raise EmulatorError(f"barrier {barrier.name}: phase {parity} is not 0 or 1")
    if not barrier.count:
        raise EmulatorError(f"barrier {barrier.name} is used before mbarrier.init")
    scheduler().wait(lambda: barrier.is_past(parity), lambda: f"parity {parity} of {barrier}")
    current().acquire(barrier.before)


def allocate_mbarrier(batch: Any = None, **_: Any) -> Any:
    from .shared import allocate_shared_memory

    return allocate_shared_memory(None, [1] if batch is None else [int(batch), 1], MBarrierLayout())
