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
from .op_library import LIBRARY
from .ops import Geometry, Numbers, OpArgs, fake_entries


def compute(*args: Any) -> tuple[Tensor, Tensor]:
    """out and lse."""
    a = OpArgs(*args)
    layout, key, cached = without_function_modes(find, a)
    if cached is not None:
        return as_the_fake(*cached.forward(a.q, a.k, a.v))
    problem, backend = without_function_modes(a.call().served, layout, a.backend)
    made = without_function_modes(backend.forward, problem)
    cache_call(layout, key, a.q, a.k, a.v, problem, backend, needs_grad=False)
    return as_the_fake(*made)


def as_the_fake(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Results with the strides that a graph was compiled for."""
    return out.contiguous(), lse.contiguous()


def compute_backward(
    out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, block_bias and sinks (empty without them)."""
    a = OpArgs(*args)
    layout, _, cached = without_function_modes(find, a)
    if cached is not None:
        problem, backend = cached.static_problem.with_inputs(a.q, a.k, a.v), cached.backend
    else:
        problem, backend = without_function_modes(problem_of_backward, a, layout)
    dq, dk, dv, *others = gradients(problem, backend, out, lse, grad_out, grad_lse)
    grad_bias, grad_sinks = (a.q.new_empty(0) if grad is None else grad.contiguous() for grad in others)
    return dq, dk, dv, grad_bias, grad_sinks


def find(a: OpArgs) -> tuple[BlockLayout, Hashable, CachedCall | None]:
    """The layout of a call, the key under which the call is cached, and what is there."""
    layout = a.layout(a.q.shape[1], a.k.shape[1], a.q.device)
    geometry, numbers = Geometry(*a.geometry), Numbers(*a.numbers)
    key = None
    options = (a.block_bias, a.sinks, a.attn_bias, a.alibi_slopes, a.sequences, a.key_padding_mask, a.seed)
    if all(option is None for option in options) and numbers.softcap == 0.0:
        key = key_of(
            a.q, a.k, a.v, bool(geometry.is_causal), numbers.softmax_scale, geometry.q_offset, a.segment_lengths or None,
            a.dilation_rates or None, a.backend, needs_grad=False,
            deterministic=bool(geometry.deterministic),
        )  # fmt: skip
    return layout, key, layout.calls.get(key)


def problem_of_backward(a: OpArgs, layout: BlockLayout) -> tuple[AttentionProblem, Backend]:
    """The problem, and the backend of the forward."""
    call = a.call()
    on_device = call.cut_to_size(layout).to(a.q.device)
    problem = call.problem(on_device)
    # a hook may have saved an input with strides that the backend of the forward would refuse, but can copy
    backend = choose_backend(problem) if a.backend == "auto" else backend_named(a.backend)
    return problem.prepared_by(backend, on_device), backend


def find_entries(pattern: str, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    """Place in the row lists of every block pair of a pattern, -1 where inactive; int64 (heads, n_rows, n_cols)."""
    if device.type == "meta":  # no tensor among the arguments tells the dispatcher
        return fake_entries(pattern, q_len, kv_len, causal, device)
    layout = LAYOUTS.find(Pattern.of_text(pattern), q_len, kv_len, causal, device)
    entries: Tensor = without_function_modes(layout.entries)
    return entries


LIBRARY.impl("attention", compute, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", compute_backward, "CompositeExplicitAutograd")
LIBRARY.impl("block_entries", find_entries, "CompositeExplicitAutograd")
