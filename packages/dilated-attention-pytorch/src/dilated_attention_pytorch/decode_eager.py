"""Decoding calls that were resolved: a repeated one goes straight to the launch, as in eager.py."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from . import _torch_internals
from ._torch_internals import without_function_modes
from .backends.decode_problem import Decode, DecodeInputs, DecodeProblem
from .backends.reference import decode_reference
from .backends.registry import choose_decode_backend
from .call import PLAIN_TYPES
from .layout.layout import BlockLayout

MAX_INT32 = 2**31 - 1


def are_plain(inputs: DecodeInputs) -> bool:
    """Whether all are plain tensors, whose values are what their memory holds."""
    return all(x is None or (type(x) in PLAIN_TYPES and not x.is_neg()) for x in inputs)


def described(x: Tensor | None) -> Hashable:
    """What a launch depends on of an optional tensor."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.device)


def described_cache(cache: Tensor) -> Hashable:
    """What a launch depends on of a contiguous cache, which may have another length the next time: kernels are compiled for
    the kind of each stride."""
    batch, _, heads, dim = cache.shape
    kinds = [x if x % 16 else "whole 16s, int64" if x > MAX_INT32 else "whole 16s" for x in cache.stride()]
    return (batch, heads, dim, *kinds, cache.dtype, cache.device)


def key_of(
    inputs: DecodeInputs, softmax_scale: float | None, softcap: float | None, backend: str | None
) -> Hashable:
    """Everything but the layout and values that a call depends on; None for one that is not cached.

    Calls on the CPU are not: the values of their lengths are checked every time.
    """
    q, k_cache, v_cache, cache_lengths, *others = inputs
    try:
        if (
            not q.is_cuda
            or not are_plain(inputs)
            or (softmax_scale is not None and type(softmax_scale) is not float)
            or (softcap is not None and type(softcap) is not float)
            or (backend is not None and type(backend) is not str)
            or _torch_internals.is_forward_mode()
            or (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs))
        ):
            return None
        if inputs.block_table is None:
            of_caches = (
                k_cache.shape[1] == v_cache.shape[1],
                described_cache(k_cache),
                described_cache(v_cache),
            )
        else:
            of_caches = (True, described(k_cache), described(v_cache))
        return (
            "decode", q.shape, q.stride(), q.dtype, q.device, *of_caches, cache_lengths.shape, cache_lengths.stride(),
            cache_lengths.dtype, cache_lengths.device, *map(described, others), softmax_scale, softcap, backend,
        )  # fmt: skip
    except (RuntimeError, AttributeError, TypeError, ValueError):
        # No tensor, or one without strides: validation names it.
        return None


def cached_call(layout: BlockLayout, key: Hashable) -> Decode | None:
    """The resolved call of a key, if there is one."""
    found: Decode | None = None if key is None else layout.calls.get(key)
    return found


def resolved_call(
    inputs: DecodeInputs, layout: BlockLayout, softmax_scale: float | None, softcap: float | None
) -> Decode | None:
    """What a call like the one just made goes straight to, of inputs of the same shapes, strides and types; None for none."""
    return cached_call(layout, key_of(inputs, softmax_scale, softcap, None))


def run_decode(
    problem: DecodeProblem, backend: str | None, layout: BlockLayout | None, key: Hashable
) -> tuple[Tensor, Tensor]:
    """out and lse; the call is kept with the layout for the next one of its key."""
    if backend == "reference":
        out, lse = without_function_modes(decode_reference, problem)
        return out, lse
    chosen = choose_decode_backend(problem, backend)
    out, lse = without_function_modes(chosen.decode, problem)
    if key is not None and layout is not None and not torch.cuda.is_current_stream_capturing():
        bound = chosen.bind_decode(problem)
        if bound is not None:
            layout.calls.keep(key, bound)
    return out, lse
