"""Products of a warpgroup. They read memory and give their result between their start and the wait for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import float32
from .schedule import EmulatorError, current, scheduler
from .shared import shared_memory_descriptor
from .tensors import base_value, tensor, to_tensor


class warpgroup_mma_accumulator(base_value):
    """The result of a product that may be in flight; only products and waits take it."""

    def __init__(self, result: tensor) -> None:
        self.result = result

    shape = property(lambda self: self.result.shape)
    dtype = property(lambda self: self.result.dtype)

    def __getattr__(self, name: str) -> Any:
        raise EmulatorError(f"{name} of a product that may be in flight: warpgroup_mma_wait comes first")


def in_flight(*_: Any) -> Any:
    raise EmulatorError("a product that may be in flight is read: warpgroup_mma_wait comes first")


for operator in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "getitem", "lt", "gt", "bool"):
    setattr(warpgroup_mma_accumulator, f"__{operator}__", in_flight)


class Product:
    """A product in flight, with the memory that it reads."""

    def __init__(self, operands: list[shared_memory_descriptor], result: warpgroup_mma_accumulator) -> None:
        self.operands, self.result, self.since = operands, result, scheduler().now()

    def finish(self) -> None:
        for operand in self.operands:
            if (operand.memory.written[operand.where] > self.since).any():
                raise EmulatorError(f"{operand} changes during a product that reads it")
            operand.memory.note_read(operand.where, current())


def operand_data(operand: Any) -> Any:
    if isinstance(operand, shared_memory_descriptor):
        operand.memory.check_fenced(operand.where, "a product reads", False)
        operand.memory.check_read(operand.where, "multiplies")
        return operand.memory.data[operand.where]
    if isinstance(operand, tensor):
        return operand.data
    raise EmulatorError(f"{operand!r} is no operand of a product")


def warpgroup_mma(
    a: Any, b: Any, acc: Any, *, use_acc: Any = True, precision: Any = None, max_num_imprecise_acc: Any = None,
    is_async: Any = False,
) -> Any:  # fmt: skip
    scheduler().pause()
    if not isinstance(b, shared_memory_descriptor):
        raise EmulatorError("the second operand of a product must be in shared memory")
    if (
        len(a.shape) != 2
        or len(b.shape) != 2
        or a.shape[1] != b.shape[0]
        or acc.shape != (a.shape[0], b.shape[1])
    ):
        raise EmulatorError(f"a product of {list(a.shape)} and {list(b.shape)} into {list(acc.shape)}")
    if a.dtype is not b.dtype:
        raise EmulatorError(f"a product of {a.dtype} and {b.dtype}")
    before = acc.result if isinstance(acc, warpgroup_mma_accumulator) else acc
    data = np.matmul(operand_data(a), operand_data(b), dtype=np.float32)
    if to_tensor(use_acc):
        data = data + before.data
    made = tensor(data, float32, before.layout)
    if not is_async:
        finish(0)
        return made
    result = warpgroup_mma_accumulator(made)
    current().products.append(Product([x for x in (a, b) if isinstance(x, shared_memory_descriptor)], result))
    return result


def warpgroup_mma_init(value: tensor) -> warpgroup_mma_accumulator:
    return warpgroup_mma_accumulator(value)


def finish(n_left: int) -> None:
    products = current().products
    while len(products) > n_left:
        products.pop(0).finish()


def warpgroup_mma_wait(num_outstanding: Any = 0, deps: Any = None) -> Any:
    if deps is None:
        raise EmulatorError("warpgroup_mma_wait needs deps")
    scheduler().pause()
    finish(int(num_outstanding))
    running = [product.result for product in current().products]
    made = tuple(
        x.result
        if isinstance(x, warpgroup_mma_accumulator) and not any(x is other for other in running)
        else x
        for x in deps
    )
    return made[0] if len(made) == 1 else made
