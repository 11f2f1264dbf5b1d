"""The custom operators: schema, fakes and autograd, so that torch.compile, export and opcheck see one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends.choose import backend_named
from .backends.problem import AttentionProblem, Forward
from .config import TokenDilation
from .patterns.layout import BlockLists

NAMESPACE = "dilated_attention_pytorch"


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    row_indices: Tensor,
    row_entries: Tensor,
    col_offsets: Tensor,
    col_indices: Tensor,
    col_entries: Tensor,
    schedule: Tensor | None,
    block_bias: Tensor | None,
    kv_lengths: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    block_size: int,
    first_row: int,
    q_offset: int,
    layout_heads: int,
    is_causal: bool,
    softmax_scale: float,
    dropout_p: float,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """out and lse of one problem; see AttentionProblem for the arguments."""
    problem = unflatten(
        q, k, v, row_offsets, row_indices, row_entries, col_offsets, col_indices, col_entries, schedule,
        block_bias, kv_lengths, key_padding_mask, seed, block_size, first_row, q_offset, layout_heads,
        is_causal, softmax_scale, dropout_p, segment_lengths, dilation_rates,
    )  # fmt: skip
    return backend_named(backend).forward(problem)


@torch.library.custom_op(f"{NAMESPACE}::attention_backward", mutates_args=())
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    row_indices: Tensor,
    row_entries: Tensor,
    col_offsets: Tensor,
    col_indices: Tensor,
    col_entries: Tensor,
    schedule: Tensor | None,
    block_bias: Tensor | None,
    kv_lengths: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    block_size: int,
    first_row: int,
    q_offset: int,
    layout_heads: int,
    is_causal: bool,
    softmax_scale: float,
    dropout_p: float,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    backend: str,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and block_bias (empty without one)."""
    problem = unflatten(
        q, k, v, row_offsets, row_indices, row_entries, col_offsets, col_indices, col_entries, schedule,
        block_bias, kv_lengths, key_padding_mask, seed, block_size, first_row, q_offset, layout_heads,
        is_causal, softmax_scale, dropout_p, segment_lengths, dilation_rates,
    )  # fmt: skip
    dq, dk, dv, grad_bias = gradients(problem, backend, out, lse, grad_out, grad_lse)
    return dq, dk, dv, q.new_empty(0) if grad_bias is None else grad_bias.contiguous()


def gradients(
    problem: AttentionProblem,
    backend: str,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and block_bias (None without one) from the backend of the forward."""
    grads = backend_named(backend).backward(problem, out, lse, grad_out, grad_lse)
    bias, grad_bias = problem.block_bias, grads.block_bias
    if bias is None or grad_bias is None:
        return grads.q, grads.k, grads.v, None
    return grads.q, grads.k, grads.v, grad_bias.sum_to_size(bias.shape).to(bias.dtype)


def unflatten(*args: Any) -> AttentionProblem:
    """The problem of the operators' flat arguments."""
    q, k, v, *lists = args[:9]
    segment_lengths, dilation_rates = args[-2:]
    dilation = TokenDilation(tuple(segment_lengths), tuple(dilation_rates)) if dilation_rates else None
    others: list[Any] = [*args[9:-2], dilation]
    return AttentionProblem(q, k, v, BlockLists(*lists[:3]), BlockLists(*lists[3:]), *others)


def flatten(problem: AttentionProblem) -> tuple[Any, ...]:
    """The flat arguments of a problem, up to the backend's name."""
    p, dilation = problem, problem.dilation
    return (
        p.q, p.k, p.v, p.rows.offsets, p.rows.indices, p.rows.entries, p.cols.offsets, p.cols.indices,
        p.cols.entries, p.schedule, p.block_bias, p.kv_lengths, p.key_padding_mask, p.seed, p.block_size, p.first_row,
        p.q_offset, p.layout_heads, p.is_causal, p.softmax_scale, p.dropout_p,
        list(dilation.segment_lengths) if dilation else [], list(dilation.dilation_rates) if dilation else [],
    )  # fmt: skip


def lse_dtype(q: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    batch, q_len, num_heads, _ = q.shape
    return q.new_empty(batch, q_len, num_heads, v.shape[3]), q.new_empty(
        batch, num_heads, q_len, dtype=lse_dtype(q)
    )


@attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    block_bias = args[7]
    grad_bias = q.new_empty(0) if block_bias is None else block_bias.new_empty(block_bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_bias


TENSOR_INPUTS = 14
PLAIN_TYPES = (Tensor, torch.nn.Parameter, type(None))


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:TENSOR_INPUTS], *output)
    ctx.others = inputs[TENSOR_INPUTS:]
    ctx.set_materialize_grads(False)


def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    n_inputs = TENSOR_INPUTS + len(ctx.others)
    if grad_out is None and grad_lse is None:
        return (None,) * n_inputs
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = attention_backward(*inputs, *ctx.others, out, lse, grad_out, grad_lse)
    grad_bias = None if inputs[10] is None else grads[3]
    return (*grads[:3], *(None,) * 7, grad_bias, *(None,) * (n_inputs - 11))


def refuse_second(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "block_sparse_attention differentiates once, but a second derivative was asked for; "
        "backend='reference' has it"
    )


attention.register_autograd(backward, setup_context=setup_context)
attention_backward.register_autograd(refuse_second)


class EagerAttention(torch.autograd.Function):
    """The same forward and backward without the dispatcher, whose way to a Python operator costs more than the kernels' launch."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_bias: Tensor | None,
        problem: AttentionProblem,
        backend: str,
        bound: Forward | None,
    ) -> tuple[Tensor, Tensor]:
        # a problem without its q, k, v and bias: they would keep the graph alive in a circle
        if bound is None:
            out, lse = backend_named(backend).forward(problem.with_tensors(q, k, v, block_bias))
        else:  # of a plan, which has no bias
            out, lse = bound(q, k, v)
        ctx.save_for_backward(q, k, v, block_bias, out, lse)
        ctx.problem, ctx.backend = problem, backend
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, block_bias, out, lse = ctx.saved_tensors
        if grad_out is None and grad_lse is None:
            return (None,) * 7
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        problem = ctx.problem.with_tensors(q, k, v, block_bias)
        # create_graph: the operator's gradients depend on q, k and v, and refuse a second derivative; ours would be constants
        if torch.is_grad_enabled() or not is_plain(problem) or is_negated(grad_out, grad_lse):
            made = attention_backward(*flatten(problem), ctx.backend, out, lse, grad_out, grad_lse)
            return (*made[:3], None if block_bias is None else made[3], None, None, None)
        return (*gradients(problem, ctx.backend, out, lse, grad_out, grad_lse), None, None, None)


def nobody_looks() -> bool:
    """Whether no mode, transform, tracer or compiler wants to see the operators."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def is_negated(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is minus what lies in its memory, which only the dispatcher sees to."""
    return any(x is not None and x.is_neg() for x in tensors)


def is_plain(problem: AttentionProblem) -> bool:
    """Whether nobody looks, no subclass of a tensor wants to see the operators, and what lies in memory is meant."""
    p = problem
    return (
        nobody_looks()
        and type(p.q) in PLAIN_TYPES
        and type(p.k) in PLAIN_TYPES
        and type(p.v) in PLAIN_TYPES
        and type(p.block_bias) in PLAIN_TYPES
        and type(p.kv_lengths) in PLAIN_TYPES
        and type(p.key_padding_mask) in PLAIN_TYPES
        and not is_negated(p.q, p.k, p.v, p.block_bias)
    )


def check_no_tangents(problem: AttentionProblem) -> None:
    """A tangent would be lost without a word: the operators have no rule for it."""
    for name in ("q", "k", "v", "block_bias"):
        x = getattr(problem, name)
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"forward-mode AD is not supported, and {name} has a tangent; use reverse mode (backward)"
            )


def attend(problem: AttentionProblem, backend: str) -> tuple[Tensor, Tensor]:
    """out and lse, through the operators where somebody looks at them."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        check_no_tangents(problem)
    if not is_plain(problem):
        out, lse = attention(*flatten(problem), backend)
        return out, lse
    if not problem.needs_grad:
        return backend_named(backend).forward(problem)
    p = problem
    out, lse = EagerAttention.apply(p.q, p.k, p.v, p.block_bias, p.without_tensors(), backend, None)  # type: ignore[no-untyped-call]
    return out, lse
