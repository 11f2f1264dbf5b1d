"""Names of Gluon that differ between the Triton versions that are served, 3.6 to 3.9: the only place that knows them."""

from __future__ import annotations

from triton.experimental.gluon.language import shared_memory_descriptor
from triton.experimental.gluon.language.nvidia.hopper import tma

# reinterpret(memory, dtype, shape, layout): the same shared memory as boxes of another shape. Private before 3.9.
reinterpret = getattr(shared_memory_descriptor, "reinterpret", None) or shared_memory_descriptor._reinterpret
# Copies between global and shared memory. From 3.8 on under these names; 3.9 has the old ones, but they only raise.
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
