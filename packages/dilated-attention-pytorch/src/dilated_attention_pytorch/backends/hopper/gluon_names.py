"""What differs between Triton 3.6 and 3.9 in the language of the kernels and in their compiler."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, TypeVar

import triton
from triton._C.libtriton import ir
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import shared_memory_descriptor
from triton.experimental.gluon.language.nvidia.hopper import tma
from triton.language.core import _aggregate, base_value, builtin
from triton.runtime.jit import JITFunction

from ...launching.installed import release

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform():
        return lambda decorator: decorator


Aggregate = TypeVar("Aggregate")
RELEASE = release(triton.__version__) or (0, 0)


@builtin  # type: ignore[untyped-decorator]
def reduce_add(tensor_desc: Any, coord: Any, src: Any, _semantic: Any = None) -> None:
    """`async_atomic_add` of 3.9."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, tensor_desc.handle, coord, src.handle)


# reinterpret(memory, dtype, shape, layout): the same shared memory with another shape. Private before 3.9.
reinterpret = getattr(shared_memory_descriptor, "reinterpret", None) or shared_memory_descriptor._reinterpret
# Copies between global and shared memory. 3.8 renamed them; the old names raise in 3.9.
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
# Adds a tile in shared memory to global memory; only in the builder before 3.9.
async_atomic_add = getattr(tma, "async_atomic_add", None) or reduce_add
# All warps of a partition meet. 3.7 renamed it.
thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


def constructor(names: Iterable[str]) -> Callable[..., None]:
    """`__init__` of an aggregate with these fields."""
    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def init(self: Any, *values: Any, **named: Any) -> None:
        for name, value in signature.bind(*values, **named).arguments.items():
            setattr(self, name, value if isinstance(value, base_value) else gl.constexpr(value))

    return init


@dataclass_transform()
def aggregate(cls: type[Aggregate]) -> type[Aggregate]:
    """A class of kernel values that are read by name; annotated fields only, and methods under `gluon.jit`.

    Triton 3.6 and 3.7 write no constructor and do not resolve annotations that are strings.
    """
    cls.__annotations__ = typing.get_type_hints(cls)
    cls.__init__ = constructor(cls.__annotations__)  # type: ignore[method-assign]
    made: Any = _aggregate(cls)
    # the cache key of a kernel refuses functions that are not compiled, such as `__annotate__` of Python 3.14
    made.hash_attrs = [member for member in made.hash_attrs if isinstance(member, JITFunction)]
    return made  # type: ignore[no-any-return]


# What follows keeps values in registers; tools/kernel-checks/hopper_offline_compile.py shows what is spilled without it.
# 3.9 compiles for Hopper with ptxas 13.4, earlier releases with 12.8 and 12.9.
NEW_PTXAS = RELEASE >= (3, 9)
# Triton asks ptxas for level 2, which spills in 13.4. The last option counts; 4 is the default of ptxas.
COMPILER_OPTIONS = {"ptx_options": "--regAllocOptLevel=4"} if NEW_PTXAS else {}
# Since 3.8 tile addresses take more registers, so -delta initialises the product with v instead of being added later.
DELTA_FIRST = gl.constexpr(RELEASE >= (3, 8))
