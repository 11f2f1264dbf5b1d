"""The implementations of the operators: they find the layout and the backend when a graph runs, and call it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from ._torch_internals import without_function_modes
from .backends.problem import AttentionProblem, Backend
from .backends.registry import backend_named, choose_backend
from .eager import CachedCall, cache_call, gradients, key_of
from .layout.cache import LAYOUTS, Pattern
from .layout.layout import BlockLayout
from .ops import LIBRARY, Geometry, Numbers, OpArgs


def compute(*args: Any) -> tuple[Tensor, Tensor]:
    """out and lse."""
    a = OpArgs(*args)
    layout, key, cached = without_function_modes(find, a)
    if cached is not None:
        made: tuple[Tensor, Tensor] = cached.forward(a.q, a.k, a.v)
        return made
    problem, backend = without_function_modes(a.call().served, layout, a.backend)
    made = without_function_modes(backend.forward, problem)
    cache_call(layout, key, a.q, a.k, a.v, problem, backend, needs_grad=False)
    return made


def compute_backward(
    out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and block_bias (empty without one)."""
    a = OpArgs(*args)
    layout, _, cached = without_function_modes(find, a)
    if cached is not None:
        problem, backend = cached.static_problem.with_inputs(a.q, a.k, a.v, None), cached.backend
    else:
        problem, backend = without_function_modes(problem_of_backward, a, layout)
    dq, dk, dv, grad_bias = gradients(problem, backend, out, lse, grad_out, grad_lse)
    return dq, dk, dv, a.q.new_empty(0) if grad_bias is None else grad_bias.contiguous()


def find(a: OpArgs) -> tuple[BlockLayout, Hashable, CachedCall | None]:
    """The layout of a call, the key under which the call is cached, and what is there."""
    layout = a.layout(a.q.shape[1], a.k.shape[1], a.q.device)
    key = None
    if a.block_bias is None and a.kv_lengths is None and a.key_padding_mask is None and a.seed is None:
        key = key_of(
            a.q, a.k, a.v, bool(Geometry(*a.geometry).is_causal), Numbers(*a.numbers).softmax_scale,
            a.segment_lengths or None, a.dilation_rates or None, a.backend, needs_grad=False,
        )  # fmt: skip
    return layout, key, layout._cached_calls.get(key)


def problem_of_backward(a: OpArgs, layout: BlockLayout) -> tuple[AttentionProblem, Backend]:
    """The problem, and the backend of the forward."""
    on_device = layout.to(a.q.device)
    problem = a.call().problem(on_device)
    # a hook may have saved an input with strides that the backend of the forward would refuse, but can copy
    backend = choose_backend(problem) if a.backend == "auto" else backend_named(a.backend)
    return problem.prepared_by(backend, on_device), backend


def find_entries(pattern: str, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    """Place in the row lists of every block pair of a pattern, -1 where inactive; int64 (heads, n_rows, n_cols)."""
    layout = LAYOUTS.find(Pattern.of_text(pattern), q_len, kv_len, causal, device)
    entries: Tensor = without_function_modes(layout._entries)
    return entries


LIBRARY.impl("attention", compute, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", compute_backward, "CompositeExplicitAutograd")
LIBRARY.impl("block_entries", find_entries, "CompositeExplicitAutograd")
