"""Modules that stand for those of Gluon while kernels are imported."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from . import assembly, barriers, dtypes, layouts, memory, products, shared, tensors, threads, tma
from .programs import num_programs, program_id, warp_specialize
from .schedule import EmulatorError, current, scheduler


class Parameter:
    """What Triton tells of a parameter of a kernel."""

    def __init__(self, place: int, parameter: inspect.Parameter) -> None:
        self.num, self.name, self.default = place, parameter.name, parameter.default
        self.has_default = parameter.default is not inspect.Parameter.empty
        self.is_constexpr = "constexpr" in str(parameter.annotation)


class JITFunction:
    """A kernel function, run by Python."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function
        parameters = inspect.signature(function).parameters
        self.arg_names = list(parameters)
        self.params = [Parameter(i, each) for i, each in enumerate(parameters.values())]
        self.__name__, self.__module__, self.__doc__ = (
            function.__name__,
            function.__module__,
            function.__doc__,
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.fn(*args, **named)

    def __repr__(self) -> str:
        return f"JITFunction({self.__module__}:{self.__name__})"


def jit(function: Any = None, **_: Any) -> Any:
    return JITFunction if function is None else JITFunction(function)


def aggregate(cls: Any) -> Any:
    """What `_aggregate` of Triton makes of a class: methods are called with the value."""
    members = {name: x.fn if isinstance(x, JITFunction) else x for name, x in cls.__dict__.items()}
    for name in ("__dict__", "__weakref__"):
        members.pop(name, None)
    made = type(cls.__name__, (tensors.base_value,), members)
    made.hash_attrs = []  # type: ignore[attr-defined]
    return made


def value_range(*bounds: Any) -> Any:
    """range of a kernel: its numbers are values, not constants."""
    if len(bounds) == 1:
        bounds = (0, *bounds)
    bounds = tuple(int(x) for x in bounds)
    return (tensors.tensor(np.int32(i), dtypes.int32) for i in builtins.range(*bounds))


def static_range(*bounds: Any, **_: Any) -> Any:
    if any(isinstance(x, tensors.tensor) for x in bounds):
        raise EmulatorError("static_range of a value: it needs constants")
    return builtins.range(*(int(x) for x in bounds))


def static_assert(condition: Any, message: str = "") -> None:
    if not condition:
        raise EmulatorError(f"static_assert: {message}")


def device_assert(condition: Any, message: str = "", mask: Any = None) -> None:
    if not np.all(tensors.to_tensor(condition).data):
        raise EmulatorError(f"device_assert: {message}")


def nothing(*_: Any, **__: Any) -> None:
    pass


def same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def num_warps() -> int:
    made: int = dtypes.constexpr(current().num_warps)
    return made


def thread_barrier(*_: Any, **__: Any) -> None:
    scheduler().pause()


def absolute(x: Any) -> Any:
    return tensors.elementwise(np.abs, floats=False)(x)


def functions() -> dict[str, Any]:
    """The names of `gluon.language` and what stands for them."""
    one = tensors.elementwise
    return {
        **dtypes.ALL,
        **{
            name: getattr(layouts, name)
            for name in (
                "BlockedLayout", "SliceLayout", "AutoLayout", "CoalescedLayout", "DistributedLinearLayout", "DotOperandLayout",
                "NVMMADistributedLayout", "NVMMASharedLayout", "SwizzledSharedLayout",
            )
        },
        "dtype": dtypes.dtype, "constexpr": dtypes.constexpr, "tensor": tensors.tensor, "pointer_type": tensors.pointer,
        "shared_memory_descriptor": shared.shared_memory_descriptor, "tuple": tuple,
        "allocate_shared_memory": shared.allocate_shared_memory,
        "load": memory.load, "store": memory.store,
        "atomic_add": memory.atomic(np.add), "atomic_max": memory.atomic(np.fmax), "atomic_min": memory.atomic(np.fmin),
        "atomic_or": memory.atomic(np.bitwise_or), "atomic_and": memory.atomic(np.bitwise_and),
        "atomic_xor": memory.atomic(np.bitwise_xor), "atomic_xchg": memory.atomic(lambda old, new: new),
        "atomic_cas": memory.atomic_cas,
        "arange": tensors.arange, "full": tensors.full, "zeros": tensors.zeros, "zeros_like": tensors.zeros_like,
        "full_like": tensors.full_like, "to_tensor": tensors.to_tensor, "cast": lambda x, kind, **named: tensors.to_tensor(x).to(kind, **named),
        "where": tensors.where, "maximum": tensors.maximum, "minimum": tensors.minimum, "fma": tensors.fma,
        "cdiv": tensors.cdiv, "max": tensors.reduce_max, "min": tensors.reduce_min, "sum": tensors.reduce_sum,
        "xor_sum": tensors.xor_sum, "reduce": tensors.combined, "cumsum": tensors.cumsum, "gather": tensors.gather,
        "reshape": tensors.reshape, "permute": tensors.permute, "expand_dims": tensors.expand_dims,
        "broadcast": tensors.broadcast, "join": tensors.join, "split": tensors.split, "convert_layout": tensors.convert_layout,
        "set_auto_layout": tensors.convert_layout,
        "exp2": one(np.exp2), "exp": one(np.exp), "log2": one(np.log2), "log": one(np.log), "sqrt": one(np.sqrt),
        "rsqrt": one(lambda x: 1 / np.sqrt(x)), "sin": one(np.sin), "cos": one(np.cos), "floor": one(np.floor),
        "ceil": one(np.ceil), "abs": absolute, "div_rn": lambda a, b: a / b, "fdiv": lambda a, b, *_: a / b,
        "inline_asm_elementwise": assembly.inline_asm_elementwise, "map_elementwise": threads.map_elementwise,
        "static_range": static_range, "range": value_range, "static_assert": static_assert, "static_print": nothing,
        "device_print": nothing, "device_assert": device_assert, "assume": nothing,
        "multiple_of": same, "max_contiguous": same, "max_constancy": same,
        "num_warps": num_warps, "num_ctas": lambda: 1, "program_id": program_id, "num_programs": num_programs,
        "thread_barrier": thread_barrier, "barrier": thread_barrier, "warp_specialize": warp_specialize,
    }  # fmt: skip


class FakeModule(ModuleType):
    """A module with given names; any other name is an error that says what to do."""

    def __init__(self, name: str, names: dict[str, Any]) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{self.__name__}.{name} is not emulated: add it to tests/core/backends/hopper/emulator/language.py"
        )


def modules() -> dict[str, ModuleType]:
    """The modules that stand for those of Gluon, by name."""
    import triton.language.core as real_core

    base = "triton.experimental"
    barrier = FakeModule(
        f"{base}.gluon.language.nvidia.hopper.mbarrier",
        {
            name: getattr(barriers, name)
            for name in (
                "MBarrierLayout",
                "init",
                "invalidate",
                "expect",
                "arrive",
                "wait",
                "allocate_mbarrier",
            )
        },
    )
    copies = FakeModule(
        f"{base}.gluon.language.nvidia.hopper.tma",
        {
            name: getattr(tma, name)
            for name in (
                "tensor_descriptor", "async_load", "async_store", "async_atomic_add", "store_wait",
                "async_copy_global_to_shared", "async_copy_shared_to_global",
            )
        },
    )  # fmt: skip
    hopper = FakeModule(
        f"{base}.gluon.language.nvidia.hopper",
        {
            "mbarrier": barrier,
            "tma": copies,
            "fence_async_shared": shared.fence_async_shared,
            **{
                name: getattr(products, name)
                for name in (
                    "warpgroup_mma",
                    "warpgroup_mma_wait",
                    "warpgroup_mma_init",
                    "warpgroup_mma_accumulator",
                )
            },
        },
    )
    nvidia = FakeModule(f"{base}.gluon.language.nvidia", {"hopper": hopper})
    language = FakeModule(f"{base}.gluon.language", {**functions(), "nvidia": nvidia})
    host_hopper = FakeModule(f"{base}.gluon.nvidia.hopper", {"TensorDescriptor": None})
    host = FakeModule(f"{base}.gluon.nvidia", {"hopper": host_hopper})
    gluon = FakeModule(
        f"{base}.gluon",
        {
            "language": language,
            "jit": jit,
            "nvidia": host,
            "constexpr_function": same,
            "aggregate": aggregate,
        },
    )
    experimental = FakeModule(base, {"gluon": gluon})
    core = ModuleType("triton.language.core")
    core.__dict__.update({**real_core.__dict__, "_aggregate": aggregate, "base_value": tensors.base_value})
    made = [experimental, gluon, language, nvidia, hopper, barrier, copies, host, host_hopper, core]
    return {module.__name__: module for module in made}
