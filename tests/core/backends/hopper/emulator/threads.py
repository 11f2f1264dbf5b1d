"""Tensors as the registers of threads: (warps, 32 lanes, registers of a thread)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layouts import DistributedLinearLayout, DotOperandLayout, NVMMADistributedLayout
from .schedule import EmulatorError
from .tensors import Diverged, tensor, to_tensor


def to_threads(x: Any, layout: Any) -> Any:
    """Registers of the result of a product, (64, N): two of a row of 8 columns, two of the row 8 below, and so on."""
    if isinstance(layout, DistributedLinearLayout):
        return x[places(layout)]
    rows, columns = x.shape
    parts = x.reshape(rows // 16, 2, 8, columns // 8, 4, 2)
    return parts.transpose(0, 2, 4, 3, 1, 5).reshape(rows // 16, 32, columns // 2)


def from_threads(x: Any, shape: Any, layout: Any) -> Any:
    if isinstance(layout, DistributedLinearLayout):
        made = np.empty(shape, x.dtype)
        made[places(layout)] = x
        return made
    rows, columns = shape
    return x.reshape(rows // 16, 8, 4, columns // 8, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(rows, columns)


def places(layout: DistributedLinearLayout) -> tuple[Any, ...]:
    """The indices of a tensor of two dimensions, for every register (warps, lanes, registers)."""
    bases = [
        np.array(each, int).reshape(-1, 2)
        for each in (layout.warp_bases, layout.lane_bases, layout.reg_bases)
    ]
    numbers = np.meshgrid(*(np.arange(2 ** len(each)) for each in bases), indexing="ij")
    made = np.zeros((*numbers[0].shape, 2), int)
    for number, each in zip(numbers, bases):
        for bit, base in enumerate(each):
            made ^= ((number >> bit) & 1)[..., None] * base
    return made[..., 0], made[..., 1]


def has_threads(layout: Any) -> bool:
    if isinstance(layout, DotOperandLayout):
        return False
    return isinstance(layout, (NVMMADistributedLayout, DistributedLinearLayout))


def by_warp(function: Any, operands: list[Any], n_warps: int) -> list[Any]:
    """function of arrays of (warps, 32); warp by warp where they take different branches."""
    try:
        return list(function(operands))
    except Diverged:
        warps = [list(function([x[w : w + 1] for x in operands])) for w in range(n_warps)]
        return [np.concatenate([warp[i] for warp in warps]) for i in range(len(warps[0]))]


def map_elementwise(function: Any, *args: tensor, pack: int = 1) -> Any:
    """function of the numbers of a thread, `pack` of every tensor at once."""
    pack = int(pack)
    layout, shape = next((x.layout for x in args if x.layout is not None), None), args[0].shape
    if not has_threads(layout):
        raise EmulatorError(f"map_elementwise of a tensor of {layout}: only results of products are emulated")
    threads = [to_threads(x.data, layout) for x in args]
    n_warps, _, n = threads[0].shape
    if n % pack:
        raise EmulatorError(f"threads hold {n} numbers, no multiple of pack {pack}")
    kinds: list[Any] = []

    def call(operands: list[Any]) -> list[Any]:
        values = []
        for i, data in enumerate(operands):
            value = tensor(data, args[i // pack].dtype)
            value.by_thread = True
            values.append(value)
        made = function(*values)
        made = made if isinstance(made, tuple) else (made,)
        kinds[:] = [number_kind(made[i : i + pack]) for i in range(0, len(made), pack)]
        lanes = operands[0].shape
        return [
            np.broadcast_to(kinds[i // pack].rounded(x.data if isinstance(x, tensor) else x), lanes)
            for i, x in enumerate(made)
        ]

    results: list[list[Any]] = []
    for first in range(0, n, pack):
        operands = [x[:, :, first + i] for x in threads for i in range(pack)]
        results.append(by_warp(call, operands, n_warps))
    made = []
    for k in range(len(results[0]) // pack):
        registers = np.stack([x for group in results for x in group[k * pack : (k + 1) * pack]], -1)
        made.append(tensor(from_threads(registers, shape, layout), kinds[k], layout))
    return made[0] if len(made) == 1 else tuple(made)


def number_kind(values: Any) -> Any:
    """The type of a result, of which some may be numbers of Python."""
    kinds = [x.dtype for x in values if isinstance(x, tensor)]
    return kinds[0] if kinds else to_tensor(values[0]).dtype
