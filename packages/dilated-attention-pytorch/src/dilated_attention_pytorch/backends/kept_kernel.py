"""Small Triton kernels that calls launch every time: compiled forms are kept, and launched without Triton's Python.

A launch through Triton's JIT takes several times as long as finding out here which compiled form serves it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .. import _torch_internals
from ..caching import BoundedCache
from .installed import release

MAX_INT32 = 2**31 - 1
# the releases that raw_launch.py knows
HAS_RAW_LAUNCH = (3, 6) <= (release(triton.__version__) or (0, 0)) <= (3, 9)
if HAS_RAW_LAUNCH:
    from . import raw_launch


class Form:
    """A compiled form of a kernel."""

    def __init__(self, kernel: Any, arguments: tuple[Any, ...], num_warps: int) -> None:
        compiled = kernel.warmup(*arguments, grid=(1,), num_warps=num_warps)
        self.compiled = compiled.result() if hasattr(compiled, "result") else compiled
        launcher = self.compiled.run  # loads the binary
        self.function = self.compiled.function
        self.launch, _ = raw_launch.unwrapped(launcher, 0)
        self.options = raw_launch.launch_options(launcher, self.compiled.packed_metadata)

    def run(self, stream: int, grid: int, arguments: list[Any]) -> None:
        """Launch it; tensors are given as addresses."""
        assert self.launch is not None
        if raw_launch.ARGUMENTS_APART:
            self.launch(grid, 1, 1, stream, self.function, *self.options, *arguments)
        else:
            self.launch(grid, 1, 1, stream, self.function, *self.options, arguments)


class KeptKernel:
    """A kernel of Triton, or of its interpreter, with its compiled forms."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.forms = BoundedCache(64)
        self.is_compiled = HAS_RAW_LAUNCH and isinstance(kernel, triton.JITFunction)
        self.parameters = kernel.params if self.is_compiled else []

    def run(self, device: torch.device, grid: int, arguments: tuple[Any, ...], num_warps: int = 4) -> None:
        """Launch `grid` programs on the current stream of a device.

        Args:
            device: of the tensors.
            grid: how many programs; nothing is launched for 0.
            arguments: every argument in its order: tensors or None, numbers and constants.
            num_warps: of a program.
        """
        if grid == 0:
            return
        if device.type == "cuda" and device.index != _torch_internals.current_device():
            with torch.cuda.device(device):
                self.run(device, grid, arguments, num_warps)
            return
        if not self.is_compiled or raw_launch.is_hooked():
            self.kernel[grid,](*arguments, num_warps=num_warps)
            return
        # as Triton specialises: pointers by type and alignment, numbers by size, 1 and multiples of 16
        key: list[Any] = [device.index, num_warps]
        given: list[Any] = []
        for x, parameter in zip(arguments, self.parameters, strict=True):
            if isinstance(x, Tensor):
                address = x.data_ptr()
                is_aligned = address % 16 == 0 or parameter.do_not_specialize_on_alignment
                key.append(x.dtype if is_aligned else (x.dtype, address % 16))
                given.append(address)
                continue
            given.append(x)
            if parameter.is_constexpr or x is None:
                key.append(x)
            elif parameter.do_not_specialize:
                key.append(x > MAX_INT32)
            else:
                key.append((x == 1, x % 16 == 0, x > MAX_INT32))
        form: Form | None = self.forms.get(tuple(key))
        if form is None:
            form = self.forms.keep(tuple(key), Form(self.kernel, arguments, num_warps))
        if form.launch is None:
            self.kernel[grid,](*arguments, num_warps=num_warps)
        else:
            form.run(_torch_internals.current_raw_stream(device.index), grid, given)
