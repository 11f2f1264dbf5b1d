"""Compiled kernels and tensor descriptors, kept between calls.

A launch through triton's JIT with six tensor descriptors costs 50 us and more of Python. Here the compiled kernel is
looked up by the few things that it depends on and launched by triton's own launcher function; descriptors, which hold
an address, shape and strides but no reference to the tensor, are kept: a training loop meets the same addresses again
and again. All caches have a bound.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

Made = TypeVar("Made")
SWIZZLE_WIDTH = 64  # elements of 16 bits in a 128-byte swizzle
N_COUNTERS = 4096  # more launches than a stream can hold
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


class BoundedCache(OrderedDict[Hashable, Any]):
    """The last `bound` things made."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self.bound = bound

    def keep(self, key: Hashable, made: Made) -> Made:
        self[key] = made
        if len(self) > self.bound:
            self.popitem(last=False)
        return made


DESCRIPTORS = BoundedCache(1024)
LAUNCHES = BoundedCache(256)
COUNTERS: dict[int, tuple[list[int], Iterator[int], Tensor]] = {}
MAKING_COUNTERS = threading.Lock()
MULTIPROCESSORS: dict[int, int] = {}


def multiprocessors(index: int) -> int:
    """How many there are on the device."""
    if index not in MULTIPROCESSORS:
        MULTIPROCESSORS[index] = torch.cuda.get_device_properties(index).multi_processor_count
    return MULTIPROCESSORS[index]


def tile_counter(index: int) -> int | Tensor:
    """(The address of) a zero int32 that no other running kernel uses; kernels set it back to 0."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=f"cuda:{index}")  # a graph has its own
    if index not in COUNTERS:
        make_counters(index)
    addresses, places, _ = COUNTERS[index]
    return addresses[next(places) % N_COUNTERS]


def make_counters(index: int) -> None:
    """The counters of a device, once: another thread's would be freed while its kernels count."""
    with MAKING_COUNTERS:
        if index not in COUNTERS:
            zeros = torch.zeros(N_COUNTERS, dtype=torch.int32, device=f"cuda:{index}")
            torch.cuda.synchronize(index)  # they are 0 for every stream from now on
            addresses = [zeros.data_ptr() + 4 * i for i in range(N_COUNTERS)]
            COUNTERS[index] = (addresses, itertools.count(), zeros)


def box_layout(x: Tensor, rows: int, rate: int) -> tuple[list[int], list[int], list[int]]:
    """Sizes, strides and box of a descriptor that reads `rows` tokens by 64 of head_dim from a tensor.

    x: (batch, seqlen, heads, head_dim). The dimensions of the descriptor are (batch, head, token, head_dim), or with a
    `rate` (batch, head, token // rate, token % rate, head_dim): then `rows` counts tokens of one residue.
    """
    batch, seqlen, heads, dim = x.shape
    # the stride of a dimension of one is never used, but must be a multiple of 16 bytes like all
    sb, ss, sh, sd = (step if size != 1 else dim for size, step in zip(x.shape, x.stride(), strict=True))
    if rate:
        sizes, steps = [batch, heads, seqlen // rate, rate, dim], [sb, sh, ss * rate, ss, sd]
        return sizes, steps, [1, 1, rows, 1, SWIZZLE_WIDTH]
    return [batch, heads, seqlen, dim], [sb, sh, ss, sd], [1, 1, rows, SWIZZLE_WIDTH]


def descriptor(x: Tensor, rows: int, rate: int = 0) -> TensorDescriptor:
    """A tensor descriptor as triton takes it."""
    sizes, steps, box = box_layout(x, rows, rate)
    return TensorDescriptor(x, sizes, steps, box, NVMMASharedLayout(128, 16, rank=len(box)))


def is_hooked() -> bool:
    """Whether somebody (a profiler) wants to see every launch."""
    hook = triton.knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))


def same_descriptors(arguments: dict[str, Any]) -> list[int]:
    """For every descriptor the place of one that is always equal: near and far keys are, without token dilation.

    By name: tensors that are the same in one call need not be in the next.
    """
    boxes = {name: x[1:] for name, x in arguments.items() if isinstance(x, tuple)}
    names = list(boxes)
    near = [name.removesuffix("_far") for name in names]
    return [
        names.index(other) if boxes[other] == boxes[name] else place
        for place, (name, other) in enumerate(zip(names, near, strict=True))
    ]


class Launch:
    """A kernel compiled for its constants, with all arguments but descriptors and addresses put in.

    `arguments` holds every argument by name and in order: tensor descriptors first, as (tensor, rows, rate), then
    tensors, then numbers and constants.
    """

    def __init__(self, function: Any, arguments: dict[str, Any], options: dict[str, int], grid: int) -> None:
        self.grid = grid
        self.boxes = [x[1:] for x in arguments.values() if isinstance(x, tuple)]
        self.same_as = same_descriptors(arguments)
        n_tensors = sum(isinstance(x, Tensor) for x in arguments.values())
        self.numbers = list(arguments.values())[len(self.boxes) + n_tensors :]
        made = {name: descriptor(*x) if isinstance(x, tuple) else x for name, x in arguments.items()}
        compiled = function.warmup(grid=(1,), **made, **options)
        self.compiled = compiled.result() if hasattr(compiled, "result") else compiled
        self.launcher = self.compiled.run  # loads the binary
        self.raw_launch: Callable[..., None] | None = None
        self.descriptors: list[Any] = []
        if VERSION in ((3, 6), (3, 7)):
            launch = self.launcher.launch  # a function around the launcher where there are descriptors
            around = inspect.getclosurevars(launch).nonlocals if self.boxes else {"launcher": launch}
            self.raw_launch, self.descriptors = around.get("launcher"), around.get("tensordesc_meta", [])

    def expanded(self, place: int, x: Tensor) -> tuple[Any, ...]:
        """The arguments that a descriptor becomes: the encoded map, its sizes and its strides."""
        from triton.backends.nvidia.driver import make_tensordesc_arg

        return tuple(make_tensordesc_arg(descriptor(x, *self.boxes[place]), self.descriptors[place]))

    def run(self, index: int, described: tuple[Tensor, ...], addresses: tuple[int | Tensor, ...]) -> None:
        """Launch on the current stream of device `index`."""
        stream = torch._C._cuda_getCurrentRawStream(index)
        compiled = self.compiled
        if self.raw_launch is None or is_hooked():
            boxes = [descriptor(x, *box) for x, box in zip(described, self.boxes, strict=True)]
            made = (*boxes, *addresses, *self.numbers)
            metadata = compiled.launch_metadata((self.grid,), stream, *made)
            hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
            self.launcher(
                self.grid, 1, 1, stream, compiled.function, compiled.packed_metadata, metadata, *hooks, *made
            )
            return
        flat: list[Any] = []
        made_before: list[tuple[Any, ...]] = []
        for place, x in enumerate(described):
            if self.same_as[place] != place:
                made_before.append(made_before[self.same_as[place]])
                flat += made_before[-1]
                continue
            # no reference to the tensor: whatever has this address, shape and strides is described by it
            key = (x.data_ptr(), x.shape, x.stride(), x.dtype, *self.boxes[place])
            kept = DESCRIPTORS.get(key)
            if kept is None:
                kept = DESCRIPTORS.keep(key, self.expanded(place, x))
            made_before.append(kept)
            flat += kept
        flat += addresses
        flat += self.numbers
        first = (self.grid, 1, 1, stream, compiled.function, False, False)
        if VERSION == (3, 6):
            self.raw_launch(*first, None, None, compiled.packed_metadata, None, None, None, *flat)
        else:
            annotations, signature = self.launcher.arg_annotations, self.launcher.kernel_signature
            self.raw_launch(
                *first, compiled.packed_metadata, None, None, None, None, None, annotations, signature, flat
            )
