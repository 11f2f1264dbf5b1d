"""Compiled kernels and tensor descriptors, cached between calls.

A launch through Triton's JIT with six tensor descriptors costs over 50 us of Python. Here the compiled kernel is looked up
by the few things that it depends on and launched by Triton's own launcher function. Descriptors are cached too: they hold an
address, shape and strides but no reference to the tensor, and a training loop sees the same addresses again and again. All
caches are bounded, and `LAUNCHES.clear()` clears everything cached here; a cached call (eager.py) keeps its own launch.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ... import _torch_internals
from ...caching import BoundedCache, make_to_stay
from ...launching.raw_launch import RawKernel, encoded, is_hooked

SWIZZLE_BYTES = 128
N_COUNTERS = 4096  # more launches than a stream can hold


LAUNCHES = BoundedCache(256)
N_ADDRESSES = 128  # for which a launch caches descriptors
COUNTERS: dict[int, tuple[list[int], Iterator[int], Tensor]] = {}
MAKING_COUNTERS = threading.Lock()
MULTIPROCESSORS: dict[int, int] = {}


def multiprocessors(index: int) -> int:
    """How many multiprocessors the device has."""
    if index not in MULTIPROCESSORS:
        MULTIPROCESSORS[index] = torch.cuda.get_device_properties(index).multi_processor_count
    return MULTIPROCESSORS[index]


def tile_counter(index: int) -> int | Tensor:
    """A zero int32 (its address, or a tensor) that no other running kernel uses; kernels reset it to 0."""
    # the default stream (0) is never captured
    if _torch_internals.current_raw_stream(index) and torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=f"cuda:{index}")  # a graph has its own
    if index not in COUNTERS:
        make_counters(index)
    addresses, places, _ = COUNTERS[index]
    return addresses[next(places) % N_COUNTERS]


def make_counters(index: int) -> None:
    """Make the counters of a device, once: those of another thread would be freed while its kernels count."""
    with MAKING_COUNTERS:
        if index not in COUNTERS:
            device = torch.device("cuda", index)
            zeros = make_to_stay(device, lambda: torch.zeros(N_COUNTERS, dtype=torch.int32, device=device))
            torch.cuda.synchronize(index)  # they are 0 for every stream from now on
            addresses = [zeros.data_ptr() + 4 * i for i in range(N_COUNTERS)]
            COUNTERS[index] = (addresses, itertools.count(), zeros)


def box_layout(x: Tensor, rows: int, rate: int) -> tuple[list[int], list[int], list[int]]:
    """Sizes, strides and box of a descriptor that reads `rows` tokens by 128 bytes of head_dim from a tensor.

    x: (batch, seqlen, heads, head_dim). The dimensions of the descriptor are (batch, head, token, head_dim), or with a
    `rate` (batch, head, token // rate, token % rate, head_dim): then `rows` counts tokens of one residue.
    """
    batch, seqlen, heads, dim = x.shape
    width = SWIZZLE_BYTES // x.element_size()
    # the stride of a dimension of one is never used, but must be a multiple of 16 bytes like all
    sb, ss, sh, sd = (step if size != 1 else dim for size, step in zip(x.shape, x.stride(), strict=True))
    if rate:
        sizes, steps = [batch, heads, seqlen // rate, rate, dim], [sb, sh, ss * rate, ss, sd]
        return sizes, steps, [1, 1, rows, 1, width]
    return [batch, heads, seqlen, dim], [sb, sh, ss, sd], [1, 1, rows, width]


def descriptor(x: Tensor, rows: int, rate: int = 0) -> TensorDescriptor:
    """A tensor descriptor, as Triton takes it."""
    sizes, steps, box = box_layout(x, rows, rate)
    layout = NVMMASharedLayout(SWIZZLE_BYTES, 8 * x.element_size(), rank=len(box))
    return TensorDescriptor(x, sizes, steps, box, layout)


def same_descriptors(arguments: dict[str, Any]) -> list[int]:
    """For every descriptor the index of one that is always equal: near and far keys are, without token dilation.

    Decided by name: tensors that are the same in one call need not be the same in the next.
    """
    boxes = {name: x[1:] for name, x in arguments.items() if isinstance(x, tuple)}
    names = list(boxes)
    near = [name.removesuffix("_far") for name in names]
    return [
        names.index(other) if boxes[other] == boxes[name] else place
        for place, (name, other) in enumerate(zip(names, near, strict=True))
    ]


def pointers(names: Iterable[str]) -> list[str]:
    """The arguments of a kernel between the descriptors and the first number."""
    behind = itertools.dropwhile(lambda name: name.startswith("desc_"), names)
    return list(itertools.takewhile(lambda name: not name[0].islower(), behind))


class Launch(RawKernel):
    """A compiled kernel with all of its arguments but descriptors and addresses.

    `arguments` holds every argument by name and in order: tensor descriptors first, as (tensor, rows, rate), then
    tensors or None, then numbers and constants; the first number has a name in lower case. What `run` is given later must have
    the same shapes, strides and types, and None at the same places.
    """

    def __init__(self, function: Any, arguments: dict[str, Any], options: dict[str, Any], grid: int) -> None:
        self.grid = grid
        self.boxes = [x[1:] for x in arguments.values() if isinstance(x, tuple)]
        # by address, without a reference to the tensor: they describe whatever tensor is there
        maps = [BoundedCache(N_ADDRESSES) for _ in self.boxes]
        self.maps = [maps[place] for place in same_descriptors(arguments)]
        self.described = BoundedCache(N_ADDRESSES)  # the results of `describe`, by all addresses together
        self.numbers = list(arguments.values())[len(self.boxes) + len(pointers(arguments)) :]
        made = {name: descriptor(*x) if isinstance(x, tuple) else x for name, x in arguments.items()}
        super().__init__(function.warmup(grid=(1,), **made, **options), len(self.boxes))

    def describe(self, described: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """The arguments that the descriptors expand to: for each the encoded map, the sizes and the strides."""
        made: list[Any] = []
        for place, (x, kept) in enumerate(zip(described, self.maps, strict=True)):
            address = x.data_ptr()
            made += kept.get(address) or kept.keep(address, self.expanded(place, x))
        return tuple(made)

    def expanded(self, place: int, x: Tensor) -> list[Any]:
        """The arguments that one descriptor expands to."""
        return encoded(descriptor(x, *self.boxes[place]), self.descriptors[place])

    def run(
        self, index: int, described: tuple[Tensor, ...], addresses: tuple[int | Tensor | None, ...]
    ) -> None:
        """Launch on the current stream of device `index`."""
        stream = _torch_internals.current_raw_stream(index)
        if self.raw_launch is None or is_hooked():
            self.run_by_triton(stream, described, addresses)
            return
        where = (*map(Tensor.data_ptr, described),)
        boxes = self.described.get(where)
        if boxes is None:
            boxes = self.described.keep(where, self.describe(described))
        self.start(self.grid, stream, (*boxes, *addresses, *self.numbers))

    def run_by_triton(
        self, stream: int, described: tuple[Tensor, ...], addresses: tuple[int | Tensor | None, ...]
    ) -> None:
        """`run` through Triton's launcher, which calls the hooks."""
        boxes = [descriptor(x, *box) for x, box in zip(described, self.boxes, strict=True)]
        made = (*boxes, *addresses, *self.numbers)
        compiled = self.compiled
        metadata = compiled.launch_metadata((self.grid,), stream, *made)
        hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
        self.launcher(
            self.grid, 1, 1, stream, self.function, compiled.packed_metadata, metadata, *hooks, *made
        )
