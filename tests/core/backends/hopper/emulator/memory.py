"""Global memory: tensors of PyTorch behind pointers; every access is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import dtypes
from .dtypes import bits16, of_bits16
from .schedule import EmulatorError
from .tensors import check_shapes, pointer, tensor, to_tensor

KINDS = {
    torch.float32: dtypes.float32, torch.float64: dtypes.float64, torch.float16: dtypes.float16,
    torch.bfloat16: dtypes.bfloat16, torch.int32: dtypes.int32, torch.int64: dtypes.int64, torch.int16: dtypes.int16,
    torch.int8: dtypes.int8, torch.uint8: dtypes.uint8, torch.bool: dtypes.int1,
}  # fmt: skip


class Buffer:
    """The elements of a tensor from its first to its last, in memory order."""

    def __init__(self, x: Tensor, name: str) -> None:
        self.name, self.dtype = name, KINDS[x.dtype]
        self.size = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride())) if x.numel() else 0
        flat = x.detach().as_strided((self.size,), (1,)) if self.size else x.detach().reshape(-1)
        self.is_16 = self.dtype.is_float and self.dtype.primitive_bitwidth == 16
        self.memory = flat.view(torch.int16).numpy().view(np.uint16) if self.is_16 else flat.numpy()
        # of tensors with gaps: which elements are theirs
        self.own: Any = None
        if self.size != x.numel():
            self.own = np.zeros(self.size, bool)
            steps = tuple(step * self.own.itemsize for step in x.stride())
            np.lib.stride_tricks.as_strided(self.own, tuple(x.shape), steps)[...] = True

    def check(self, offsets: Any, what: str) -> None:
        """All offsets lie in the tensor."""
        offsets = np.asarray(offsets)
        bad = (offsets < 0) | (offsets >= self.size)
        if self.own is not None and not bad.any():
            bad = ~self.own[offsets]
        if bad.any():
            first = offsets[bad].flat[0] if offsets.ndim else offsets
            raise EmulatorError(
                f"{what} of {self.name} at element {first}, outside of its {self.size} ({int(bad.sum())} of {bad.size} lanes)"
            )

    def read(self, offsets: Any) -> Any:
        found = self.memory[offsets]
        return of_bits16(found, self.dtype) if self.is_16 else found

    def write(self, offsets: Any, values: Any) -> None:
        self.memory[offsets] = bits16(values, self.dtype) if self.is_16 else values

    def view(self, sizes: Any, steps: Any) -> Any:
        """The raw elements as an array of these sizes and steps."""
        item = self.memory.itemsize
        return np.lib.stride_tricks.as_strided(
            self.memory, tuple(sizes), tuple(step * item for step in steps)
        )


def active(mask: Any, shape: Any) -> Any:
    """A mask as an array of a shape, None where all lanes are active."""
    if mask is None:
        return None
    mask = to_tensor(mask)
    if mask.shape and not shape:
        raise EmulatorError("the mask of a single address has more than one element")
    return np.broadcast_to(mask.data != 0, shape)


def load(ptr: Any, mask: Any = None, other: Any = None, **_: Any) -> tensor:
    if not isinstance(ptr, pointer):
        raise EmulatorError(f"load from {ptr!r}, which is no pointer")
    buffer, shape = ptr.buffer, ptr.shape
    if not shape:
        if mask is None or bool(to_tensor(mask)):
            offset = int(ptr.data)
            if not 0 <= offset < buffer.size or buffer.own is not None:
                buffer.check(offset, "load")
            return tensor(buffer.dtype.rounded(buffer.read(offset)), buffer.dtype)
        return tensor(
            buffer.dtype.nothing if other is None else buffer.dtype.rounded(to_tensor(other).number()),
            buffer.dtype,
        )
    if isinstance(mask, tensor):
        check_shapes(ptr, mask)
    lanes = active(mask, shape)
    if lanes is None:
        buffer.check(ptr.data, "load")
        return ptr.like(buffer.read(ptr.data), buffer.dtype)
    buffer.check(ptr.data[lanes], "load")
    if other is None:
        made = np.full(shape, buffer.dtype.nothing, buffer.dtype.held)
    else:
        made = np.array(np.broadcast_to(buffer.dtype.rounded(to_tensor(other).data), shape))
    made[lanes] = buffer.read(ptr.data[lanes])
    return ptr.like(made, buffer.dtype, mask)


def store(ptr: Any, value: Any, mask: Any = None, **_: Any) -> None:
    if not isinstance(ptr, pointer):
        raise EmulatorError(f"store to {ptr!r}, which is no pointer")
    buffer, shape = ptr.buffer, ptr.shape
    value = to_tensor(value)
    check_shapes(ptr, value)
    if value.shape and not shape:
        raise EmulatorError("a tensor is stored at one address")
    data = np.broadcast_to(buffer.dtype.rounded(value.data), shape)
    lanes = active(mask, shape)
    offsets = ptr.data
    if lanes is not None:
        offsets, data = np.asarray(offsets)[lanes], data[lanes]
    buffer.check(offsets, "store")
    if np.ndim(offsets) and len(np.unique(offsets)) != np.size(offsets):
        order = np.argsort(offsets, axis=None, kind="stable")
        sorted_offsets, sorted_data = np.asarray(offsets).flat[order], data.flat[order] if data.ndim else data
        same = sorted_offsets[1:] == sorted_offsets[:-1]
        if (same & (sorted_data[1:] != sorted_data[:-1])).any():
            raise EmulatorError(f"store of different values at the same element of {buffer.name}")
    buffer.write(offsets, data)


def atomic(function: Any) -> Any:
    """An atomic operation, given as a ufunc, in the order of the lanes."""

    def apply(ptr: pointer, value: Any, mask: Any = None, **_: Any) -> tensor:
        buffer, shape = ptr.buffer, ptr.shape
        values = np.broadcast_to(buffer.dtype.rounded(to_tensor(value).data), shape)
        lanes = active(mask, shape)
        lanes = np.broadcast_to(True, shape) if lanes is None else lanes
        offsets, values = np.broadcast_to(ptr.data, shape)[lanes], values[lanes]
        buffer.check(offsets, "atomic operation")
        found = np.full(shape, buffer.dtype.nothing, buffer.dtype.held)
        if len(np.unique(offsets)) == offsets.size:
            old = buffer.read(offsets)
            buffer.write(offsets, buffer.dtype.rounded(function(old, values)))
        else:
            old = np.empty(offsets.shape, buffer.dtype.held)
            for i, offset in enumerate(offsets):
                old[i] = buffer.read(offset)
                buffer.write(offset, buffer.dtype.rounded(function(old[i], values[i])))
        found[lanes] = old
        return ptr.like(found[()], buffer.dtype)

    return apply


def atomic_cas(ptr: pointer, expected: Any, value: Any, **_: Any) -> tensor:
    buffer, offset = ptr.buffer, int(ptr.data)
    buffer.check(offset, "atomic operation")
    old = buffer.read(offset)
    if old == to_tensor(expected).number():
        buffer.write(offset, buffer.dtype.rounded(to_tensor(value).number()))
    return tensor(old, buffer.dtype)
