"""The eager path: calls that go to their backend directly, and the cache of resolved calls.

Dispatching to a Python operator costs more than launching the kernel, so a call that nobody observes bypasses the
dispatcher. A repeated call skips validation and backend selection as well: what they found out is kept with the layout as
a CachedCall, under a key of everything that they depend on. Calls with tensors besides q, k and v, with a softcap or with
dropout are not cached.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling  # looked up in every call

from . import _torch_internals, ops
from ._torch_internals import labelled, profiler_flags, without_function_modes
from .backends.problem import AttentionProblem, Backend, Forward
from .call import PLAIN_TYPES, Call
from .layout.layout import BlockLayout
from .op_library import NAMESPACE

# A call that bypasses the dispatcher has the names of the operators in a profile.
LABEL, LABEL_OF_BACKWARD = f"{NAMESPACE}::attention", f"{NAMESPACE}::attention_backward"
OPTIONAL_TYPES = (*PLAIN_TYPES, type(None))
SEQUENCES = (list, tuple)


# ---- which calls go directly to their backend


def is_plain_eager() -> bool:
    """True in plain eager mode: no dispatch mode, functorch transform, tracer or compiler is active."""
    return (
        not is_compiling()
        and not _torch_internals.num_dispatch_modes()
        and _torch_internals.functorch_interpreter() is None
        and _torch_internals.tracing_state() is None
    )


def can_bypass_dispatcher(call: Call | AttentionProblem) -> bool:
    """True in plain eager mode for plain tensors with values, which are what their memory holds."""
    c = call
    return (
        is_plain_eager()
        and type(c.q) in OPTIONAL_TYPES
        and not c.q.is_meta  # whose shapes the operator knows
        and type(c.k) in OPTIONAL_TYPES
        and type(c.v) in OPTIONAL_TYPES
        and type(c.block_bias) in OPTIONAL_TYPES
        and type(c.sinks) in OPTIONAL_TYPES
        and type(c.attn_bias) in OPTIONAL_TYPES
        and type(c.alibi_slopes) in OPTIONAL_TYPES
        and type(c.key_padding_mask) in OPTIONAL_TYPES
        and (c.sequences is None or type(c.sequences.table) in OPTIONAL_TYPES)
        and not is_negated(c.q, c.k, c.v, c.block_bias, c.sinks, c.attn_bias, c.alibi_slopes)
    )


def is_negated(*tensors: Tensor | None) -> bool:
    """Whether the values of a tensor are minus those in its memory, which the dispatcher resolves."""
    return any(x is not None and x.is_neg() for x in tensors)


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether a tensor stands for many, as with `is_grads_batched` of torch.autograd.grad."""
    return any(x is not None and _torch_internals.is_legacy_batched(x) for x in tensors)


# ---- what runs


class CachedCall(NamedTuple):
    """A resolved call without its inputs: it serves every call that differs in nothing but the values of q, k and v."""

    static_problem: AttentionProblem  # without its inputs, which would keep their graph alive
    backend: Backend
    needs_grad: bool
    forward: Forward

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """out and lse."""
        if profiler_flags._is_profiler_enabled:
            made: tuple[Tensor, Tensor] = labelled(LABEL, self._run, q, k, v)
            return made
        return self._run(q, k, v)

    def _run(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.needs_grad:
            out, lse = EagerAttention.apply(q, k, v, self)  # type: ignore[no-untyped-call]
            return out, lse
        return self.forward(q, k, v)


def forward_of(static_problem: AttentionProblem, backend: Backend) -> Forward:
    """The backend's forward of a problem with other q, k and v, and without a bias or sinks."""

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        problem = static_problem.with_inputs(q, k, v)
        if not _torch_internals.num_function_modes():
            return backend.forward(problem)
        made: tuple[Tensor, Tensor] = without_function_modes(backend.forward, problem)
        return made

    return forward


def run_attention(problem: AttentionProblem, backend: Backend) -> tuple[Tensor, Tensor]:
    """out and lse of a problem that can bypass the dispatcher."""
    made: tuple[Tensor, Tensor] = labelled(LABEL, attention_of, problem, backend)
    return made


def attention_of(problem: AttentionProblem, backend: Backend) -> tuple[Tensor, Tensor]:
    """As `run_attention`, without a label."""
    p = problem
    if _torch_internals.is_forward_mode():
        ops.check_no_tangents((name, getattr(p, name)) for name in ops.DIFFERENTIABLE)
    if not p.needs_grad:
        out, lse = without_function_modes(backend.forward, p)
        return out, lse
    static_problem = p.without_inputs()
    call = CachedCall(static_problem, backend, True, forward_of(static_problem, backend))
    others = (p.block_bias, p.sinks, p.attn_bias)
    if p.block_bias is None and p.sinks is None and p.attn_bias is None:
        others = ()  # type: ignore[assignment]  # autograd takes less time
    out, lse = EagerAttention.apply(p.q, p.k, p.v, call, *others)  # type: ignore[no-untyped-call]
    return out, lse


class EagerAttention(torch.autograd.Function):
    """The gradient of a call that bypasses the dispatcher.

    `others` are nothing, or block_bias, sinks and attn_bias: that has no gradient, but autograd notices a change in place.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: CachedCall, *others: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if others:
            problem = call.static_problem.with_inputs(q, k, v, *others[:2])
            out, lse = without_function_modes(call.backend.forward, problem)
        else:
            out, lse = call.forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse, *others)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *others = ctx.saved_tensors
        no_others = (None,) * len(others)
        if grad_out is None and grad_lse is None:
            return (None, None, None, None, *no_others)
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        backend, problem = ctx.call.backend, ctx.call.static_problem.with_inputs(q, k, v, *others[:2])
        if (
            torch.is_grad_enabled()  # create_graph: these gradients would be constants, the operator's refuse it
            or not can_bypass_dispatcher(problem)
            or is_negated(grad_out, grad_lse)
            or is_batched(grad_out, grad_lse)
        ):
            args = ops.op_args(problem, backend.name)
            dq, dk, dv, grad_bias, grad_sinks = ops.attention_backward(out, lse, grad_out, grad_lse, *args)
        else:
            dq, dk, dv, grad_bias, grad_sinks = labelled(
                LABEL_OF_BACKWARD, gradients, problem, backend, out, lse, grad_out, grad_lse
            )
        if not others:
            return dq, dk, dv, None
        bias, sinks, _ = others
        return (
            dq,
            dk,
            dv,
            None,
            None if bias is None else grad_bias,
            None if sinks is None else grad_sinks,
            None,
        )


def gradients(
    problem: AttentionProblem,
    backend: Backend,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v, block_bias and sinks (None without them) from the backend of the forward."""
    grads = without_function_modes(backend.backward, problem, out, lse, grad_out, grad_lse)
    return (
        grads.q, grads.k, grads.v, of_shape(grads.block_bias, problem.block_bias), of_shape(grads.sinks, problem.sinks),
    )  # fmt: skip


def of_shape(grad: Tensor | None, x: Tensor | None) -> Tensor | None:
    """The gradient of an input, summed to its shape and in its type."""
    return None if grad is None or x is None else grad.sum_to_size(x.shape).to(x.dtype)


# ---- the cache


def key_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool,
    softmax_scale: float | None,
    q_offset: object,
    segment_lengths: Sequence[int] | None,
    dilation_rates: Sequence[int] | None,
    backend: str | None,
    needs_grad: bool | None = None,
    deterministic: bool | None = None,
) -> Hashable:
    """Everything but the layout and values that a call without options depends on; None for one that is not cached.

    With `needs_grad` None the tensors decide.
    """
    try:
        dtype, device = q.dtype, q.device
        if (
            type(q) not in PLAIN_TYPES
            or type(k) not in PLAIN_TYPES
            or type(v) not in PLAIN_TYPES
            or k.dtype is not dtype  # autocast brings them together
            or v.dtype is not dtype
            or k.device != device  # which validation names
            or v.device != device
            or type(is_causal) is not bool
            or (softmax_scale is not None and type(softmax_scale) is not float)
            or (q_offset is not None and type(q_offset) is not int)
            or (backend is not None and (type(backend) is not str or backend == "reference"))
            or (deterministic is not None and type(deterministic) is not bool)
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
        # a call on another stream must wait for what the layout caches, so it is not served from here
        stream = _torch_internals.current_raw_stream(q.get_device()) if q.is_cuda else None
        return (
            q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), dtype, device, q.storage_offset() % 8, k.storage_offset() % 8, v.storage_offset() % 8,
            needs_grad,
            autocast_dtype(q) if _torch_internals.is_any_autocast_enabled() else None, is_causal, softmax_scale, q_offset,
            dilation, backend, stream, deterministic is not False,
        )  # fmt: skip
    except (AttributeError, RuntimeError):  # no tensor, or one without strides, which validation names
        return None


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast gives the inputs, None where it is off."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def cache_call(
    layout: BlockLayout,
    key: Hashable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    problem: AttentionProblem,
    backend: Backend,
    needs_grad: bool,
) -> None:
    """Keep a call that was served, if the next one like it needs nothing but the launch; no call without a key."""
    p = problem
    if key is None or p.q is not q or p.k is not k or p.v is not v:
        return  # autocast changed them: work for every call
    if p.dilation is not None or p.rows.device != layout.device:
        return  # the keys are dilated, or the layout is on another device
    if layout.is_captured or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
        return  # what is prepared may belong to the graph, and its stream has not waited for it
    static_problem = p.without_inputs()
    forward = backend.bind(p) or forward_of(static_problem, backend)
    call = CachedCall(static_problem, backend, needs_grad, forward)
    layout.calls.keep(key, call)
