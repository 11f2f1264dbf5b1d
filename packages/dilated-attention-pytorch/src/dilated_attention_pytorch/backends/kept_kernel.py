"""Small Triton kernels that calls launch every time: compiled forms are kept, and launched without Triton's Python.

A launch through Triton's JIT takes several times as long as finding out here which compiled form serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    def __init__(self, kernel: Any, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        compiled = kernel.warmup(*arguments, grid=(1,), **options)
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


class Kind(NamedTuple):
    """How Triton specialises a parameter, looked up once: its properties are computed every time."""

    is_constant: bool
    is_free: bool  # of no value
    is_anywhere: bool  # of no alignment

    @classmethod
    def of(cls, parameter: Any) -> Kind:
        """That of a parameter of a kernel."""
        p = parameter
        return cls(p.is_constexpr, p.do_not_specialize, p.do_not_specialize_on_alignment)


class KeptKernel:
    """A kernel of Triton, or of its interpreter, with its compiled forms."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.forms = BoundedCache(256)
        self.names: list[str] = kernel.arg_names
        self.kinds: list[Kind] = []
        if HAS_RAW_LAUNCH and isinstance(kernel, triton.JITFunction):
            self.kinds = [Kind.of(parameter) for parameter in kernel.params]

    def run(self, device: torch.device, grid: int, arguments: Sequence[Any], **options: Any) -> None:
        """Launch `grid` programs on the current stream of a device.

        Args:
            device: of the tensors.
            grid: how many programs; nothing is launched for 0.
            arguments: every argument in its order: tensors or None, numbers and constants. Triton's JIT takes the launch
                if one is a tuple.
            options: how it is compiled; num_warps and others, 4 warps by default.
        """
        if grid == 0:
            return
        # without a GPU the JIT interprets the kernel, or compiles it for one (compile_only.py)
        if device.type != "cuda" or not self.kinds or raw_launch.is_hooked():
            self.kernel[grid,](*arguments, **options)
            return
        if device.index != _torch_internals.current_device():
            with torch.cuda.device(device):
                self.run(device, grid, arguments, **options)
            return
        # as Triton specialises: pointers by type and alignment, integers by size, 1 and multiples of 16
        key: list[Any] = [device.index, *options.items()]
        given = list(arguments)
        for place, (x, (is_constant, is_free, is_anywhere)) in enumerate(zip(given, self.kinds, strict=True)):
            kind = type(x)
            if is_constant or x is None:
                key.append(x)
            elif kind is int:
                is_long = not -MAX_INT32 <= x <= MAX_INT32
                key.append(is_long if is_free else (is_long, x == 1, x % 16 == 0))
            elif kind is float or kind is bool:
                key.append(kind)
            elif not isinstance(x, Tensor):
                self.kernel[grid,](*arguments, **options)
                return
            else:
                given[place] = address = x.data_ptr()
                key.append(x.dtype if is_anywhere or address % 16 == 0 else (x.dtype, False))
        its_key = tuple(key)
        form: Form | None = self.forms.get(its_key)
        if form is None:
            form = self.forms.keep(its_key, Form(self.kernel, arguments, options))
        if form.launch is None:
            self.kernel[grid,](*arguments, **options)
        else:
            form.run(_torch_internals.current_raw_stream(device.index), grid, given)
