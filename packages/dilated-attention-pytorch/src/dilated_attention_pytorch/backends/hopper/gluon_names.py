"""What differs between the Triton versions that are served, 3.6 to 3.9, in the language of the kernels and their compiler."""

from __future__ import annotations

import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import shared_memory_descriptor
from triton.experimental.gluon.language.nvidia.hopper import tma

from ..installed import release

RELEASE = release(triton.__version__) or (0, 0)

# reinterpret(memory, dtype, shape, layout): the same shared memory as boxes of another shape. Private before 3.9.
reinterpret = getattr(shared_memory_descriptor, "reinterpret", None) or shared_memory_descriptor._reinterpret
# Copies between global and shared memory. From 3.8 on under these names; 3.9 has the old ones, but they only raise.
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

# What follows keeps the kernels in registers; tools/kernel-checks/hopper_offline_compile.py shows what is spilled without it.
# 3.9 compiles for Hopper with ptxas 13.4, the releases before it with 12.8 and 12.9.
NEW_PTXAS = RELEASE >= (3, 9)
# Triton asks ptxas for level 2, which spills in 13.4. The last option counts; from 4 on it is the default of ptxas.
COMPILER_OPTIONS = {"ptx_options": "--regAllocOptLevel=4"} if NEW_PTXAS else {}
# Since 3.8 the addresses of tiles take more registers: -delta is what the product with v begins with, not added to it later.
DELTA_FIRST = gl.constexpr(RELEASE >= (3, 8))
