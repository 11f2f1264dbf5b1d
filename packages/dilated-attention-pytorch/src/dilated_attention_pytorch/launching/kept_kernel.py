"""Small Triton kernels that calls launch every time: compiled forms are kept, and launched without Triton's Python.

A launch through Triton's JIT takes several times as long as finding out here which compiled form serves it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .. import _torch_internals
from ..caching import BoundedCache
from .supported_triton import is_supported

MAX_INT32 = 2**31 - 1
HAS_RAW_LAUNCH = is_supported(triton.__version__)
if HAS_RAW_LAUNCH:
    from . import raw_launch


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
        self.forms = BoundedCache(64)  # by what Triton specialises
        self.seen = BoundedCache(256)  # the same by the numbers themselves, which are found faster
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
        key: list[Any] = [device.index, *options.items()]
        given: list[Any] = []
        for x in arguments:
            if isinstance(x, Tensor):
                address = x.data_ptr()
                given.append(address)
                key += (x.dtype, address % 16)
            else:
                given.append(x)
                key.append(x)
        form: raw_launch.RawKernel | None = self.seen.get(tuple(key))
        if form is None:
            its_kind = self.kind_of(arguments)
            if its_kind is None:
                self.kernel[grid,](*arguments, **options)
                return
            its_kind = (device.index, *options.items(), *its_kind)
            form = self.forms.get(its_kind)
            if form is None:
                compiled = self.kernel.warmup(*arguments, grid=(1,), **options)
                form = self.forms.keep(its_kind, raw_launch.RawKernel(compiled))
            self.seen.keep(tuple(key), form)
        if form.raw_launch is None:
            self.kernel[grid,](*arguments, **options)
        else:
            form.start(grid, _torch_internals.current_raw_stream(device.index), given)

    def kind_of(self, arguments: Sequence[Any]) -> tuple[Hashable, ...] | None:
        """As Triton specialises: pointers by type and alignment, integers by size, 1 and multiples of 16; None for a tuple."""
        found: list[Hashable] = []
        for x, (is_constant, is_free, is_anywhere) in zip(arguments, self.kinds, strict=True):
            if is_constant or x is None:
                found.append(x)
            elif isinstance(x, Tensor):
                found.append(x.dtype if is_anywhere or x.data_ptr() % 16 == 0 else (x.dtype, False))
            elif type(x) is int:
                is_long = not -MAX_INT32 <= x <= MAX_INT32
                found.append(is_long if is_free else (is_long, x == 1, x % 16 == 0))
            elif type(x) in (float, bool):
                found.append(str(type(x)))
            else:
                return None
        return tuple(found)
