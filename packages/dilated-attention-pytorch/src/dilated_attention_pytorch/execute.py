"""What the operators of ops.py do when they run: find the layout and the backend, and call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._torch_internals import without_function_modes
from .backends.problem import AttentionProblem
from .backends.registry import backend_named, choose_backend
from .call import Call
from .config import TokenDilation
from .eager import Plan, find_plan, keep_plan
from .layout.cache import LAYOUTS, Pattern
from .layout.layout import BlockLayout
from .ops import LIBRARY, N_INPUTS, TENSORS, gradients, layout_of


def compute(*inputs: Any) -> tuple[Tensor, Tensor]:
    """out and lse."""
    layout, plan = without_function_modes(find, inputs)
    if plan is not None:
        made: tuple[Tensor, Tensor] = plan.forward(*inputs[:3])
        return made
    q, k, v = inputs[:3]
    is_causal, softmax_scale, segment_lengths, dilation_rates, asked = settings(inputs)
    problem, backend = without_function_modes(call_of(inputs).served, layout, asked)
    made = without_function_modes(backend.forward, problem)
    if is_simple(inputs):
        keep_plan(
            layout, q, k, v, is_causal, softmax_scale, segment_lengths, dilation_rates, asked, problem, backend.name,
            needs_grad=False,
        )  # fmt: skip
    return made


def compute_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and block_bias (empty without one)."""
    layout, plan = without_function_modes(find, inputs)
    if plan is not None:
        problem, backend = plan.problem.with_tensors(*inputs[:3], None), plan.backend
    else:
        problem, backend = without_function_modes(problem_of_backward, inputs, layout)
    dq, dk, dv, grad_bias = gradients(problem, backend, *inputs[N_INPUTS:])
    return dq, dk, dv, problem.q.new_empty(0) if grad_bias is None else grad_bias.contiguous()


def is_simple(inputs: tuple[Any, ...]) -> bool:
    """Whether there are no options: no bias, mask, lengths or dropout."""
    return inputs[3] is None and inputs[4] is None and inputs[5] is None and inputs[6] is None


def settings(inputs: tuple[Any, ...]) -> tuple[bool, float, list[int] | None, list[int] | None, str]:
    """What a plan depends on, beside the tensors."""
    is_causal, softmax_scale, _, segment_lengths, dilation_rates, asked = inputs[N_INPUTS - 6 : N_INPUTS]
    return is_causal, softmax_scale, segment_lengths or None, dilation_rates or None, asked


def find(inputs: tuple[Any, ...]) -> tuple[BlockLayout, Plan | None]:
    """The layout of a call, and its plan if a call like it was served before."""
    q, k, v = inputs[:3]
    lists, numbers = inputs[7 : len(TENSORS)], inputs[len(TENSORS) : N_INPUTS]
    layout = layout_of(q.shape[1], k.shape[1], q.device, lists, numbers)
    plan = None
    if is_simple(inputs):
        plan = find_plan(layout, q, k, v, *settings(inputs), needs_grad=False)
    return layout, plan


def problem_of_backward(inputs: tuple[Any, ...], layout: BlockLayout) -> tuple[AttentionProblem, str]:
    """The problem, and the name of the backend of the forward."""
    on_device, asked = layout.to(inputs[0].device), inputs[N_INPUTS - 1]
    problem = call_of(inputs).problem(on_device)
    # a hook may have saved an input with strides that the backend of the forward would refuse, but can copy
    backend = choose_backend(problem) if asked == "auto" else backend_named(asked)
    return problem.prepared_by(backend, on_device), backend.name


def call_of(inputs: tuple[Any, ...]) -> Call:
    """The call that the operators' inputs say."""
    is_causal, softmax_scale, dropout_p, segment_lengths, dilation_rates = inputs[N_INPUTS - 6 : N_INPUTS - 1]
    dilation = TokenDilation(tuple(segment_lengths), tuple(dilation_rates)) if dilation_rates else None
    return Call._make((*inputs[:7], is_causal, softmax_scale, dropout_p, dilation))


def find_entries(pattern: str, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    """Place in the row lists of every block pair of a pattern, -1 where inactive; int64 (heads, n_rows, n_cols)."""
    layout = LAYOUTS.find(Pattern.of_text(pattern), q_len, kv_len, causal, device)
    entries: Tensor = without_function_modes(layout._entries)
    return entries


LIBRARY.impl("attention", compute, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", compute_backward, "CompositeExplicitAutograd")
LIBRARY.impl("block_entries", find_entries, "CompositeExplicitAutograd")
