"""Triton's launcher function without the Python around it: everything private of Triton's host side, 3.6 to 3.9.

Where Triton is not as expected, nothing here is used: the launch goes through `Launch.run_by_triton`, which takes 50 us more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton.backends.nvidia.driver import make_tensordesc_arg

from .installed import release

# 3.6 compiles a launcher for every signature, which takes the kernel's arguments one by one; since 3.7 one launcher takes
# them all as a tuple.
ARGUMENTS_APART = release(triton.__version__) == (3, 6)
# Since 3.8 the function that encodes a descriptor also takes the arguments of the launch, which it does not read.
ENCODER_ARGUMENTS = len(inspect.signature(make_tensordesc_arg).parameters) - 2


class RawKernel:
    """A compiled kernel, launched by Triton's C function, or by Triton's launcher where `raw_launch` is None."""

    def __init__(self, compiled: Any, n_descriptors: int = 0) -> None:
        """`compiled`: what `JITFunction.warmup` returns, which may be a future."""
        self.compiled = compiled.result() if hasattr(compiled, "result") else compiled
        self.launcher = self.compiled.run  # loads the binary
        self.function = self.compiled.function
        self.raw_launch: Any
        self.raw_launch, self.descriptors = unwrapped(self.launcher, n_descriptors)
        self.options = launch_options(self.launcher, self.compiled.packed_metadata)

    def start(self, grid: int, stream: int, arguments: Sequence[Any]) -> None:
        """Launch `grid` programs; tensors are given as addresses, descriptors as `encoded` makes them."""
        if ARGUMENTS_APART:
            self.raw_launch(grid, 1, 1, stream, self.function, *self.options, *arguments)
        else:
            self.raw_launch(grid, 1, 1, stream, self.function, *self.options, arguments)


def is_hooked() -> bool:
    """Whether a hook, such as a profiler's, wants to see every launch."""
    hook = triton.knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))


def unwrapped(launcher: Any, n_descriptors: int) -> tuple[Callable[..., None] | None, list[Any]]:
    """The C function that launches a kernel, and for each descriptor the metadata that `encoded` takes.

    If a kernel has descriptors, `launcher.launch` is a wrapper that encodes them in every call.
    """
    if getattr(launcher, "gsan_enabled", False):  # a sanitizer (since 3.8) adds arguments
        return None, []
    if not n_descriptors:
        return launcher.launch, []
    around = inspect.getclosurevars(launcher.launch).nonlocals
    launch, descriptors = around.get("launcher"), around.get("tensordesc_meta") or []
    if launch is None or len(descriptors) != n_descriptors:
        return None, []
    return launch, descriptors


def launch_options(launcher: Any, packed_metadata: Any) -> tuple[Any, ...]:
    """The arguments of the C function between grid, stream and kernel and the arguments of the kernel."""
    # neither cooperative nor dependent; no scratch memory, no hooks
    if ARGUMENTS_APART:
        return (False, False, None, None, packed_metadata, None, None, None)
    types = launcher.arg_annotations, launcher.kernel_signature
    return (False, False, packed_metadata, None, None, None, None, None, *types)


def encoded(descriptor: Any, meta: Any) -> list[Any]:
    """The arguments that a tensor descriptor expands to: its encoded map, the sizes and the strides."""
    made: list[Any] = make_tensordesc_arg(descriptor, meta, *(None,) * ENCODER_ARGUMENTS)
    return made
