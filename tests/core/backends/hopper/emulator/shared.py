"""Shared memory, with the order of elements of swizzled tiles: pieces as wide as the swizzle, one after the other.

Who wrote what and when is kept, so that asynchronous readers notice a missing fence and memory that changes under them.
"""

from __future__ import annotations

import functools
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from .barriers import Barrier
from .dtypes import dtype
from .layouts import MBarrierLayout, NVMMASharedLayout
from .schedule import EmulatorError, current, scheduler
from .tensors import base_value, tensor

HERE = str(Path(__file__).parent)


@functools.lru_cache(maxsize=256)
def places(shape: tuple[int, ...], layout: Any) -> Any:
    """Where the elements of memory of a shape are, from its start."""
    order = np.arange(int(np.prod(shape)), dtype=np.int64)
    if isinstance(layout, NVMMASharedLayout) and layout.swizzle_byte_width and len(shape) >= 2:
        piece = layout.swizzle_byte_width * 8 // layout.element_bitwidth
        if shape[-1] > piece:
            rows, columns = shape[-2:]
            order = order.reshape(*shape[:-2], columns // piece, rows, piece).swapaxes(-2, -3)
    return order.reshape(shape)


def name_here() -> str:
    """To what name the kernel assigns, as its source says."""
    frame: FrameType | None = sys._getframe(2)
    line = "return"
    while frame is not None and line.startswith("return"):  # of a helper: what its caller assigns it to
        if not frame.f_code.co_filename.startswith(HERE):
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        frame = frame.f_back
    return line.split("=")[0].strip() if "=" in line.split("(")[0] else line


class Allocation:
    """Memory of a program."""

    def __init__(self, kind: dtype, size: int, name: str) -> None:
        self.dtype, self.name = kind, name
        self.data = np.full(size, kind.nothing, kind.held)
        self.written = np.zeros(size, np.int64)  # when
        self.unfenced = np.zeros(size, np.int64)  # when written by a partition itself, until it fences
        self.writer = np.zeros(size, np.int16)
        self.writers: list[Any] = [None]
        # by partition: at which of its times it has read, and written the value that is there
        self.read_times: dict[int, Any] = {}
        self.write_times: dict[int, Any] = {}

    def write(self, where: Any, values: Any) -> None:
        """A write of the current partition."""
        now, actor = scheduler().now(), current()
        if actor not in self.writers:
            self.writers.append(actor)
        old = self.data[where]
        changed = (old != values) & ~((old != old) & (values != values))
        self.check_write(where[changed], "writes")
        self.data[where] = values
        self.written[where] = np.where(changed, now, self.written[where])
        self.note_write(where, where[changed])
        self.unfenced[where] = now
        self.writer[where] = self.writers.index(actor)

    def unordered(self, where: Any) -> Any:
        """What others have written in these places, and the current partition has waited for none of them."""
        actor = current()
        written, waited = np.zeros(where.shape, bool), np.zeros(where.shape, bool)
        for place, times in self.write_times.items():
            found = times[where]
            written |= found > 0
            waited |= (found > 0) & (found <= actor.before[place])
        return written & ~waited

    def check_read(self, where: Any, verb: str) -> None:
        """The current partition has waited for what it reads."""
        if self.unordered(where).any():
            raise EmulatorError(
                f"it {verb} {self.name} without waiting for the partition that has written it"
            )

    def check_write(self, where: Any, verb: str) -> None:
        """The current partition has waited for whoever has written or read in these places."""
        actor = current()
        for times_of, done in ((self.write_times, "written"), (self.read_times, "read")):
            for place, times in times_of.items():
                if place != actor.place and (times[where] > actor.before[place]).any():
                    who = self.partition(place)
                    raise EmulatorError(
                        f"it {verb} {self.name} without waiting for {who}, which has {done} it"
                    )

    def partition(self, place: int) -> str:
        names = [
            actor.name
            for actor in scheduler().actors
            if actor.program is current().program and actor.place == place
        ]
        return names[0] if names else f"partition {place}"

    def note_read(self, where: Any, actor: Any) -> None:
        self.read_times.setdefault(actor.place, np.zeros(self.data.size, np.int64))[where] = actor.time

    def note_load(self, where: Any, actor: Any) -> None:
        """What was loaded to be stored again counts as written."""
        own = self.write_times.get(actor.place)
        self.note_read(where if own is None else where[own[where] != actor.time], actor)

    def note_write(self, where: Any, changed: Any) -> None:
        """Values that change are those of one partition; others may write the same."""
        actor = current()
        for times in self.write_times.values():
            times[changed] = 0
        self.write_times.setdefault(actor.place, np.zeros(self.data.size, np.int64))[where] = actor.time

    def read(self, where: Any) -> Any:
        """A read of the current partition. What another writes at the same time, also if both write the same, must not be used."""
        if self.dtype.primitive_bitwidth != 16:
            self.check_read(where, "reads")
            self.note_read(where, current())
            return self.data[where]
        unordered = self.unordered(where)
        current().loads.append((self, where[~unordered]))
        return np.where(unordered, self.dtype.nothing, self.data[where])

    def overwrite(self, where: Any, values: Any) -> None:
        """A write of the asynchronous proxy."""
        self.data[where] = values
        self.written[where] = scheduler().now()
        self.unfenced[where] = 0

    def check_fenced(self, where: Any, what: str, by_all: bool) -> None:
        """Nothing in these places was written since the last fence of the current partition (by_all: of its writer)."""
        stamps = self.unfenced[where]
        if not stamps.any():
            return
        actor = current()
        for i, writer in enumerate(self.writers):
            if writer is None or not (by_all or writer is actor):
                continue
            if ((self.writer[where] == i) & (stamps > writer.fenced)).any():
                raise EmulatorError(
                    f"{what} {self.name}, written by {writer} without fence_async_shared since"
                )


class shared_memory_descriptor(base_value):
    """A view of memory; `where` holds the places of its elements."""

    def __init__(self, memory: Allocation, where: Any, layout: Any, kind: dtype | None = None) -> None:
        self.memory, self.where, self.layout = memory, where, layout
        self.dtype = kind or memory.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.where.shape)

    @property
    def rank(self) -> int:
        return int(self.where.ndim)

    @property
    def numel(self) -> int:
        return int(self.where.size)

    @property
    def type(self) -> Any:
        return self

    element_ty = property(lambda self: self.dtype)

    def __repr__(self) -> str:
        return f"{self.memory.name}{list(self.shape)}"

    def of(self, where: Any) -> shared_memory_descriptor:
        return shared_memory_descriptor(self.memory, where, self.layout)

    def index(self, i: Any) -> shared_memory_descriptor:
        i = int(i)
        if not 0 <= i < self.shape[0]:
            raise EmulatorError(f"index {i} of {self}")
        return self.of(self.where[i])

    def slice(self, start: Any, length: Any, dim: int = 0) -> shared_memory_descriptor:
        start, length = int(start), int(length)
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise EmulatorError(f"slice {start} to {start + length} of dimension {dim} of {self}")
        return self.of(np.take(self.where, range(start, start + length), dim))

    def permute(self, order: Any) -> shared_memory_descriptor:
        return self.of(self.where.transpose([int(i) for i in order]))

    def reshape(self, shape: Any) -> shared_memory_descriptor:
        return self.of(self.where.reshape([int(n) for n in shape]))

    def reinterpret(self, dtype: Any, shape: Any, layout: Any) -> shared_memory_descriptor:
        shape = tuple(int(n) for n in shape)
        flat = np.sort(self.where, axis=None)
        if dtype is not self.dtype:
            raise EmulatorError(f"{self} of {self.dtype} as {dtype} is not emulated")
        if int(np.prod(shape)) > flat.size or flat[-1] - flat[0] != flat.size - 1:
            raise EmulatorError(f"{self} has not the memory of {list(shape)}")
        return shared_memory_descriptor(self.memory, flat[0] + places(shape, layout), layout)

    _reinterpret = reinterpret

    def load(self, layout: Any = None) -> tensor:
        scheduler().pause()
        return tensor(self.memory.read(self.where), self.dtype, layout)

    def store(self, value: tensor) -> None:
        scheduler().pause()
        if not isinstance(value, tensor) or value.shape != self.shape or value.dtype is not self.dtype:
            raise EmulatorError(f"{value!r:.80} is stored in {self} of {self.dtype}")
        self.memory.write(self.where, value.data)

    def _keep_alive(self) -> None:
        pass


class BarrierArray(base_value):
    """Barriers, as memory."""

    def __init__(self, barriers: list[Barrier]) -> None:
        self.barriers = barriers

    shape = property(lambda self: (len(self.barriers), 1))
    dtype = None
    layout = None

    def index(self, i: Any) -> Barrier:
        i = int(i)
        if not 0 <= i < len(self.barriers):
            raise EmulatorError(f"index {i} of {len(self.barriers)} barriers {self.barriers[0].name}")
        return self.barriers[i]

    def slice(self, start: Any, length: Any, dim: int = 0) -> BarrierArray:
        return BarrierArray(self.barriers[int(start) : int(start) + int(length)])

    def _keep_alive(self) -> None:
        pass


def allocate_shared_memory(element_ty: Any, shape: Any, layout: Any, value: Any = None) -> Any:
    shape, name = tuple(int(n) for n in shape), name_here()
    if isinstance(layout, MBarrierLayout) or layout is MBarrierLayout:
        n = shape[0] if len(shape) > 1 else 1
        made = [Barrier(f"{name}[{i}]") for i in range(n)]
        return BarrierArray(made) if len(shape) > 1 else made[0]
    order = places(shape, layout)
    memory = Allocation(element_ty, order.size, name)
    program = current().program
    program.shared_bytes += order.size * element_ty.primitive_bitwidth // 8
    view = shared_memory_descriptor(memory, order, layout)
    if value is not None:
        view.store(value)
    return view


def fence_async_shared(cluster: bool = False) -> None:
    current().fenced = scheduler().now()
