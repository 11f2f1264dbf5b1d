"""Copies of boxes between global and shared memory, which arrive at any later time."""

from __future__ import annotations

from typing import Any

import numpy as np

from .barriers import Barrier
from .dtypes import bits16, of_bits16
from .layouts import NVMMASharedLayout
from .memory import Buffer
from .schedule import EmulatorError, current, scheduler
from .shared import shared_memory_descriptor
from .tensors import base_value, to_tensor


class tensor_descriptor(base_value):
    """Sizes and strides of a tensor, and of the boxes that are copied."""

    def __init__(self, buffer: Buffer, sizes: Any, steps: Any, box: Any) -> None:
        self.buffer, self.sizes, self.box = buffer, tuple(sizes), tuple(box)
        self.dtype, self.name = buffer.dtype, buffer.name
        self.elements = buffer.view(sizes, steps)
        self.layout = NVMMASharedLayout(128, self.dtype.primitive_bitwidth, rank=len(box))

    shape = property(lambda self: self.sizes)
    block_shape = property(lambda self: self.box)
    nbytes_per_cta = property(lambda self: int(np.prod(self.box)) * self.dtype.primitive_bitwidth // 8)
    type = property(lambda self: self)
    block_type = property(lambda self: self)
    element_ty = property(lambda self: self.dtype)

    def inside(self, coord: Any) -> tuple[Any, Any]:
        """Which elements of the tensor are in the box at a place, and where in the box they are."""
        whole = [(max(first, 0), min(first + n, size)) for first, n, size in zip(coord, self.box, self.sizes)]
        outer = tuple(slice(low, max(low, high)) for low, high in whole)
        inner = tuple(slice(low - first, max(low, high) - first) for (low, high), first in zip(whole, coord))
        return outer, inner

    def read(self, coord: Any) -> Any:
        """A box, 0 outside of the tensor."""
        made = np.zeros(self.box, self.dtype.held)
        outer, inner = self.inside(coord)
        found = self.elements[outer]
        if found.size:
            made[inner] = of_bits16(found, self.dtype) if self.buffer.is_16 else found
        return made

    def write(self, coord: Any, values: Any, add: bool = False) -> None:
        """Write what of a box is in the tensor."""
        outer, inner = self.inside(coord)
        values = values[inner]
        if not values.size:
            return
        if add:
            old = self.elements[outer]
            values = self.dtype.rounded(values + (of_bits16(old, self.dtype) if self.buffer.is_16 else old))
        self.elements[outer] = bits16(values, self.dtype) if self.buffer.is_16 else values


class Load:
    """A box on its way to shared memory."""

    def __init__(
        self, desc: tensor_descriptor, coord: Any, barrier: Barrier, result: shared_memory_descriptor
    ) -> None:
        self.desc, self.coord, self.barrier, self.result = desc, coord, barrier, result
        self.actor = current()
        self.before = self.actor.before.copy()

    def arrive(self) -> None:
        data = self.desc.read(self.coord).reshape(self.result.shape)
        self.result.memory.overwrite(self.result.where, data)
        self.barrier.arrived(data.size * self.desc.dtype.primitive_bitwidth // 8, self.before)


class Store:
    """A box on its way to global memory."""

    def __init__(
        self, desc: tensor_descriptor, coord: Any, source: shared_memory_descriptor, add: bool
    ) -> None:
        self.desc, self.coord, self.source, self.add = desc, coord, source, add
        self.since, self.actor = scheduler().now(), current()
        self.values: Any = None
        self.is_there = False

    def read(self) -> None:
        """Take the values from shared memory, which may then change."""
        if self.values is not None:
            return
        memory, where = self.source.memory, self.source.where
        if (memory.written[where] > self.since).any():
            raise EmulatorError(
                f"{self.source} changes while it is stored to {self.desc.name}: tma.store_wait is missing"
            )
        self.values = memory.data[where].reshape(self.desc.box).copy()

    def arrive(self) -> None:
        if not self.is_there:
            self.read()
            self.is_there = True
            self.desc.write(self.coord, self.values, self.add)


def coordinates(desc: tensor_descriptor, coord: Any) -> list[int]:
    if len(coord) != len(desc.box):
        raise EmulatorError(f"{len(coord)} coordinates for boxes of {list(desc.box)} of {desc.name}")
    return [int(x) for x in coord]


def check_box(desc: tensor_descriptor, view: shared_memory_descriptor) -> None:
    if int(np.prod(view.shape)) != int(np.prod(desc.box)) or view.dtype is not desc.dtype:
        raise EmulatorError(
            f"{view} of {view.dtype} is no box of {desc.name}: {list(desc.box)} of {desc.dtype}"
        )


def async_load(
    desc: tensor_descriptor,
    coord: Any,
    barrier: Barrier,
    result: shared_memory_descriptor,
    pred: Any = True,
    **_: Any,
) -> None:
    if not to_tensor(pred):
        return
    scheduler().pause()
    check_box(desc, result)
    result.memory.check_fenced(result.where, "a copy overwrites", True)
    result.memory.check_write(result.where, "overwrites by a copy")
    result.memory.note_write(result.where, result.where)
    result.memory.overwrite(result.where, desc.dtype.nothing)
    scheduler().copies.append(Load(desc, coordinates(desc, coord), barrier, result))


def start_store(desc: tensor_descriptor, coord: Any, source: shared_memory_descriptor, add: bool) -> None:
    scheduler().pause()
    check_box(desc, source)
    coord = coordinates(desc, coord)
    if min(coord) < 0:
        raise EmulatorError(f"a store to {desc.name} at {coord}")
    source.memory.check_fenced(source.where, "a copy reads", True)
    source.memory.check_read(source.where, "stores by a copy")
    copy = Store(desc, coord, source, add)
    current().stores.append(copy)
    current().under_way.append(copy)
    scheduler().copies.append(copy)


def async_store(desc: tensor_descriptor, coord: Any, source: shared_memory_descriptor, **_: Any) -> None:
    start_store(desc, coord, source, False)


def async_atomic_add(desc: tensor_descriptor, coord: Any, source: shared_memory_descriptor, **_: Any) -> None:
    start_store(desc, coord, source, True)


def store_wait(pendings: Any = 0) -> None:
    """Wait until at most so many of the partition's stores read their memory; they may reach global memory later."""
    scheduler().pause()
    stores = current().stores
    while len(stores) > int(pendings):
        copy = stores.pop(0)
        copy.read()
        copy.source.memory.note_read(copy.source.where, current())


def stores_landed(pendings: int) -> None:
    """Wait until all but the last so many of the partition's stores are in global memory."""
    under_way = current().under_way
    while len(under_way) > pendings:
        copy = under_way.pop(0)
        if copy in scheduler().copies:
            scheduler().copies.remove(copy)
        copy.arrive()
    store_wait(max(0, pendings))


async_copy_global_to_shared, async_copy_shared_to_global = async_load, async_store
