"""Plans: what was found out about a call that was served, so that the next one like it goes straight to its backend.

Checking the arguments and choosing a backend take longer than a launch, and a training loop makes the same few calls
again and again. A plan belongs to a layout and dies with it. It is found by all that the checks and the choice look
at, so another call never finds it; calls with options, under a mode, a transform or a compiler look for none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _torch_internals, ops
from ._torch_internals import without_function_modes
from .backends.problem import AttentionProblem, Forward
from .backends.registry import backend_named
from .caching import LOCK
from .layout.layout import BlockLayout

MOST = 64  # plans of a layout
TENSORS = (Tensor, torch.nn.Parameter)
SEQUENCES = (list, tuple)


class Plan(NamedTuple):
    """A problem without its q, k and v, the name of the backend that serves it, and that backend's forward."""

    problem: AttentionProblem
    backend: str
    needs_grad: bool
    forward: Forward

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """out and lse, as from `ops.attend_eagerly`."""
        if self.needs_grad:
            out, lse = ops.EagerAttention.apply(q, k, v, None, self.problem, self.backend, self.forward)  # type: ignore[no-untyped-call]
            return out, lse
        return self.forward(q, k, v)


def forward_of(problem: AttentionProblem, others: AttentionProblem, name: str) -> Forward:
    """The forward of problems like this one but for their q, k and v, which `others` is without."""
    backend = backend_named(name)
    bound = backend.bind(problem)
    if bound is not None:
        return bound

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        problem = others.with_tensors(q, k, v, None)
        if not _torch_internals.num_function_modes():
            return backend.forward(problem)
        made: tuple[Tensor, Tensor] = without_function_modes(backend.forward, problem)
        return made

    return forward


def key_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool,
    softmax_scale: float | None,
    segment_lengths: Sequence[int] | None,
    dilation_rates: Sequence[int] | None,
    backend: str | None,
    needs_grad: bool | None = None,
) -> Hashable:
    """All that a call without options depends on beside its layout and values; None where it is always checked."""
    if (
        type(q) not in TENSORS
        or type(k) not in TENSORS
        or type(v) not in TENSORS
        or type(is_causal) is not bool
        or (softmax_scale is not None and type(softmax_scale) is not float)
        or (backend is not None and (type(backend) is not str or backend == "reference"))
        or _torch_internals.is_forward_mode()
        or q.is_neg()
        or k.is_neg()
        or v.is_neg()
    ):
        return None
    if needs_grad is None:
        needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    dilation = None
    if segment_lengths is not None or dilation_rates is not None:
        if type(segment_lengths) not in SEQUENCES or type(dilation_rates) not in SEQUENCES:
            return None
        dilation = repr(segment_lengths), repr(dilation_rates)
    # a plan is good for the stream that has waited for what the layout keeps
    stream = _torch_internals.current_raw_stream(q.get_device()) if q.is_cuda else None
    return (
        q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), q.dtype, k.dtype, v.dtype, q.device, k.device,
        v.device, q.storage_offset() % 8, k.storage_offset() % 8, v.storage_offset() % 8,
        needs_grad,
        autocast_dtype(q) if _torch_internals.is_any_autocast_enabled() else None, is_causal, softmax_scale, dilation, backend,
        stream,
    )  # fmt: skip


def find_plan(
    layout: BlockLayout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool,
    softmax_scale: float | None,
    segment_lengths: Sequence[int] | None,
    dilation_rates: Sequence[int] | None,
    backend: str | None,
    needs_grad: bool | None = None,
) -> Plan | None:
    """The plan of a call without options, while nobody looks; `needs_grad` None asks the tensors."""
    try:
        key = key_of(q, k, v, is_causal, softmax_scale, segment_lengths, dilation_rates, backend, needs_grad)
    except RuntimeError:  # a tensor without strides: the checks say which
        return None
    plan: Plan | None = layout._plans.get(key)
    return plan


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of the inputs, if it does."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def keep_plan(
    layout: BlockLayout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool,
    softmax_scale: float | None,
    segment_lengths: Sequence[int] | None,
    dilation_rates: Sequence[int] | None,
    asked: str | None,
    problem: AttentionProblem,
    backend: str,
    needs_grad: bool | None = None,
) -> None:
    """Keep the plan of a call that was served, if the next one like it needs nothing but the launch."""
    p = problem
    if p.q is not q or p.k is not k or p.v is not v or p.rows is not layout.row_lists:
        return  # autocast changed them, the layout lives elsewhere or the keys are dilated: work of every call
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # what is prepared may belong to the graph, and its stream has not waited for it
    if needs_grad is None:
        needs_grad = p.needs_grad
    key = key_of(q, k, v, is_causal, softmax_scale, segment_lengths, dilation_rates, asked, needs_grad)
    if key is None:
        return
    others = p.without_tensors()
    plan = Plan(others, backend, needs_grad, forward_of(p, others, backend))
    with LOCK:
        while len(layout._plans) >= MOST:
            del layout._plans[next(iter(layout._plans))]  # the oldest
        layout._plans[key] = plan
