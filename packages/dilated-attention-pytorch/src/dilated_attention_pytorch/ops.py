"""The custom operators: schema, fakes, gradients, vmap rules and FLOPs, so that all of PyTorch sees one node.

Both take the layout either as lists (`row_offsets` ... `col_entries`) or as a `pattern`, the constant of a module: then the
layout of the tensors' lengths is looked up when the operator runs, and a graph serves every length. The backend is chosen
when it runs, too (execute.py). A Call holds what else they take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import _torch_internals
from ._torch_internals import apply_at_this_level, call_below_autograd, without_function_modes, without_modes
from .backends.problem import AttentionProblem, Forward
from .backends.registry import backend_named
from .call import Call
from .config import TokenDilation
from .grid import BlockGrid
from .layout.cache import LAYOUTS, Pattern
from .layout.layout import BlockLayout
from .layout.lists import BlockLists

NAMESPACE = "dilated_attention_pytorch"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
TENSORS = (
    "q", "k", "v", "block_bias", "kv_lengths", "key_padding_mask", "seed", "row_offsets", "row_indices", "row_entries",
    "col_offsets", "col_indices", "col_entries",
)  # fmt: skip
OF_BACKWARD = ("out", "lse", "grad_out", "grad_lse")
DIFFERENTIABLE = 4  # the first inputs
PLAIN_TYPES = (Tensor, torch.nn.Parameter, type(None))
INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? block_bias, Tensor? kv_lengths, Tensor? key_padding_mask, Tensor? seed, "
    "Tensor? row_offsets, Tensor? row_indices, Tensor? row_entries, Tensor? col_offsets, Tensor? col_indices, "
    "Tensor? col_entries, str pattern, SymInt block_size, SymInt layout_heads, bool causal_layout, bool is_causal, "
    "float softmax_scale, float dropout_p, SymInt[] segment_lengths, SymInt[] dilation_rates, str backend"
)
N_INPUTS = INPUTS.count(",") + 1

LIBRARY.define(f"attention({INPUTS}) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    f"attention_backward({INPUTS}, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "block_entries(str pattern, SymInt q_len, SymInt kv_len, bool causal, Device device) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
attention = getattr(torch.ops, NAMESPACE).attention.default
attention_backward = getattr(torch.ops, NAMESPACE).attention_backward.default
block_entries = getattr(torch.ops, NAMESPACE).block_entries.default
OPERATORS = attention, attention_backward


# ---- between a call and the operators' inputs


def inputs_of(call: Call, layout: BlockLayout | Pattern, backend: str | None) -> tuple[Any, ...]:
    """The operators' inputs."""
    if isinstance(layout, Pattern):
        lists, text, causal = (None,) * 6, layout.text, call.is_causal
    else:
        if layout.device != call.q.device:
            layout = layout.to(call.q.device)
        rows, cols = layout.row_lists, layout.col_lists
        lists = (rows.indptr, rows.indices, rows.block_ids, cols.indptr, cols.indices, cols.block_ids)  # type: ignore[assignment]
        text, causal = "", layout.causal
    dilation = call.dilation
    return (
        call.q, call.k, call.v, call.block_bias, call.kv_lengths, call.key_padding_mask, call.seed, *lists, text,
        layout.block_size, layout.num_heads, causal, call.is_causal, call.softmax_scale, call.dropout_p,
        list(dilation.segment_lengths) if dilation else [],
        list(dilation.dilation_rates) if dilation else [], backend or "auto",
    )  # fmt: skip


def flatten(problem: AttentionProblem) -> tuple[Any, ...]:
    """The operators' inputs up to the backend's name, of a problem."""
    p, dilation = problem, problem.dilation
    rows, cols = p.undilated
    return (
        p.q, p.k, p.v, p.block_bias, p.kv_lengths, p.key_padding_mask, p.seed, rows.indptr, rows.indices, rows.block_ids,
        cols.indptr, cols.indices, cols.block_ids, "", p.block_size, p.layout_heads, p.causal_layout, p.is_causal,
        p.softmax_scale, p.dropout_p, list(dilation.segment_lengths) if dilation else [],
        list(dilation.dilation_rates) if dilation else [],
    )  # fmt: skip


def layout_of(
    q_len: int, kv_len: int, device: torch.device, lists: tuple[Any, ...], numbers: tuple[Any, ...]
) -> BlockLayout:
    """The layout that the operators' inputs name, for lengths that are known."""
    text, block_size, layout_heads, causal = numbers[:4]
    if text:
        return LAYOUTS.find(Pattern(text, block_size, layout_heads), q_len, kv_len, causal, device)
    grid = BlockGrid(q_len, kv_len, block_size, causal)
    return BlockLayout._of_lists(grid, layout_heads, BlockLists(*lists[:3]), BlockLists(*lists[3:]))


# ---- what backends and fakes give


def gradients(
    problem: AttentionProblem,
    backend: str,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and block_bias (None without one) from the backend of the forward."""
    grads = without_function_modes(backend_named(backend).backward, problem, out, lse, grad_out, grad_lse)
    bias, grad_bias = problem.block_bias, grads.block_bias
    if bias is None or grad_bias is None:
        return grads.q, grads.k, grads.v, None
    return grads.q, grads.k, grads.v, grad_bias.sum_to_size(bias.shape).to(bias.dtype)


def lse_dtype(q: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, q_len, num_heads, _ = q.shape
    return q.new_empty(batch, q_len, num_heads, v.shape[3]), q.new_empty(
        batch, num_heads, q_len, dtype=lse_dtype(q)
    )


def fake_backward(
    q: Tensor, k: Tensor, v: Tensor, block_bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = q.new_empty(0) if block_bias is None else block_bias.new_empty(block_bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_bias


torch.library.register_fake(f"{NAMESPACE}::attention", fake, lib=LIBRARY)
torch.library.register_fake(f"{NAMESPACE}::attention_backward", fake_backward, lib=LIBRARY)


def fake_entries(pattern: str, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    its = Pattern.of_text(pattern)
    q_offset = kv_len - q_len if causal else 0
    n_rows = (q_len + q_offset + its.block_size - 1) // its.block_size - q_offset // its.block_size
    n_cols = (kv_len + its.block_size - 1) // its.block_size
    return torch.empty(its.num_heads, n_rows, n_cols, dtype=torch.int64, device=device)


torch.library.register_fake(f"{NAMESPACE}::block_entries", fake_entries, lib=LIBRARY)


# ---- gradients


def call_in_function(op: Any, keyset: Any, inputs: tuple[Any, ...]) -> Any:
    """`call_below_autograd` inside an autograd.Function, which turns gradients off, for the outer transforms of torch.func too."""
    if not _torch_internals.are_functorch_transforms_active():
        return call_below_autograd(op, keyset, inputs)
    with torch.enable_grad():
        return call_below_autograd(op, keyset, inputs)


class AttentionFunction(torch.autograd.Function):
    """The gradient of the operator `attention`."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = call_in_function(OPERATORS[0], keyset, inputs)
        ctx.save_for_backward(*inputs[: len(TENSORS)], out, lse)
        ctx.numbers = inputs[len(TENSORS) :]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        if grad_out is None and grad_lse is None:
            return (None,) * (1 + N_INPUTS)
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        *grads, grad_bias = attention_backward(*tensors, *ctx.numbers, out, lse, grad_out, grad_lse)
        bias = tensors[3]
        return (None, *grads, None if bias is None else grad_bias, *(None,) * (N_INPUTS - DIFFERENTIABLE))


class RefusedSecondDerivative(torch.autograd.Function):
    """The gradient of the operator `attention_backward`: there is none."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = call_in_function(OPERATORS[1], keyset, inputs)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "block_sparse_attention differentiates once, but a second derivative was asked for; "
            "backend='reference' has it"
        )


def autograd_kernel(op: Any, function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What the dispatcher calls at the key Autograd; once for every nested gradient of torch.func."""

    def kernel(keyset: Any, *inputs: Any) -> Any:
        if _torch_internals.is_forward_mode():
            check_no_tangents(inputs)
        if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return call_below_autograd(op, keyset, inputs)
        if not _torch_internals.are_functorch_transforms_active():
            return function.apply(keyset, *inputs)
        return apply_at_this_level(function, keyset, *inputs)

    return kernel


LIBRARY.impl("attention", autograd_kernel(attention, AttentionFunction), "Autograd", with_keyset=True)
LIBRARY.impl(
    "attention_backward", autograd_kernel(attention_backward, RefusedSecondDerivative), "Autograd", with_keyset=True
)  # fmt: skip


def check_no_tangents(inputs: tuple[Any, ...]) -> None:
    """A tangent would be lost without a word: the operators have no rule for it."""
    names = [*TENSORS, *(None,) * (N_INPUTS - len(TENSORS)), *OF_BACKWARD]
    for name, x in zip(names, inputs, strict=False):
        if isinstance(x, Tensor) and x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                "block_sparse_attention differentiates once, in reverse mode: forward-mode AD is not supported, and "
                f"{name} has a tangent; use reverse mode (backward, torch.func.grad, jacrev), or backend='reference', "
                "which has both"
            )


# ---- vmap


def fold(x: Any, dim: int | None, size: int) -> Any:
    """A tensor of every sample, as one with the samples in its batch dimension."""
    if not isinstance(x, Tensor):
        return x
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def take(x: Any, dim: int | None, i: int) -> Any:
    """Sample i of a tensor."""
    return x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x


def vmap_rule(op: Any) -> Callable[..., Any]:
    """Samples go into the batch dimension; with dropout, whose bits count batch elements, one after the other."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        size, n_tensors = info.batch_size, len(TENSORS)
        if any(dim is not None for dim in in_dims[7:n_tensors]):
            raise ValueError(
                "the lists of a layout must be the same for every sample of vmap, got batched ones"
            )
        if inputs[6] is not None:
            samples = [
                op(*(take(x, dim, i) for x, dim in zip(inputs, in_dims, strict=True))) for i in range(size)
            ]
            outs = [torch.stack(parts) for parts in zip(*samples, strict=True)]
            return tuple(outs), (0,) * len(outs)
        per_sample = {0, 1, 2, 4, 5, *range(N_INPUTS, len(inputs))}
        folded = [
            fold(x, dim, size) if i in per_sample else x
            for i, (x, dim) in enumerate(zip(inputs, in_dims, strict=True))
        ]
        bias, batch = inputs[3], None
        if bias is not None:
            dim = in_dims[3]
            by_sample = bias.expand(size, *bias.shape) if dim is None else bias.movedim(dim, 0)
            batch = folded[0].shape[0] // max(size, 1)
            folded[3] = by_sample.expand(size, batch, *by_sample.shape[2:]).flatten(0, 1)
            n_own = by_sample.shape[1]
        made = list(op(*folded))
        if op is OPERATORS[1]:
            if bias is None:
                return (*(x.unflatten(0, (size, -1)) for x in made[:3]), made[3]), (0, 0, 0, None)
            if n_own == 1:
                made[3] = made[3].unflatten(0, (size, batch)).sum(1, keepdim=True).flatten(0, 1)
        return tuple(x.unflatten(0, (size, -1)) for x in made), (0,) * len(made)

    return rule


torch.library.register_vmap(f"{NAMESPACE}::attention", vmap_rule(attention), lib=LIBRARY)
torch.library.register_vmap(f"{NAMESPACE}::attention_backward", vmap_rule(attention_backward), lib=LIBRARY)


# ---- FLOPs


def num_pairs(inputs: tuple[Any, ...]) -> Any:
    """(query, key) pairs in active blocks, over the batch and all heads; what a mask hides in them counts."""
    q, k, row_offsets, row_indices = inputs[0], inputs[1], inputs[7], inputs[8]
    numbers = inputs[len(TENSORS) : N_INPUTS]
    (batch, q_len, num_heads, _), kv_len = q.shape, k.shape[1]
    text, block_size, layout_heads, causal = numbers[:4]
    segment_lengths, rates = numbers[7:9]
    if not text and (type(row_indices) not in PLAIN_TYPES or row_indices.is_meta):
        # the lists have no values: the mean over all block pairs, which is exact for whole blocks
        grid = BlockGrid(q_len, kv_len, block_size, causal)
        return (
            batch
            * num_heads
            * row_indices.shape[0]
            * q_len
            * kv_len
            // (max(1, layout_heads * grid.n_rows * grid.n_cols) * (min(rates) if rates else 1))
        )
    device = torch.device("cpu") if text else row_offsets.device
    dilation = TokenDilation(tuple(segment_lengths), tuple(rates)) if rates else None
    with without_modes():  # the lists have values even where q has none
        layout = layout_of(int(q_len), int(kv_len), device, inputs[7 : len(TENSORS)], numbers)
        return batch * num_heads // layout_heads * layout._num_pairs(dilation)


@register_flop_formula(torch.ops.dilated_attention_pytorch.attention, get_raw=True)
def count_flops(*inputs: Any, out_val: Any = None, **others: Any) -> Any:
    """Two products over the active blocks, counted as scaled_dot_product_attention's over all pairs."""
    return 2 * num_pairs(inputs) * (inputs[0].shape[3] + inputs[2].shape[3])


@register_flop_formula(torch.ops.dilated_attention_pytorch.attention_backward, get_raw=True)
def count_backward_flops(*inputs: Any, out_val: Any = None, **others: Any) -> Any:
    """Five products: the scores again, and the gradients of scores, q, k and v."""
    return 2 * num_pairs(inputs) * (3 * inputs[0].shape[3] + 2 * inputs[2].shape[3])


# ---- without the dispatcher


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
            out, lse = without_function_modes(
                backend_named(backend).forward, problem.with_tensors(q, k, v, block_bias)
            )
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
        if (
            torch.is_grad_enabled()
            or not is_plain(problem)
            or is_negated(grad_out, grad_lse)
            or is_batched(grad_out, grad_lse)
        ):
            made = attention_backward(*flatten(problem), ctx.backend, out, lse, grad_out, grad_lse)
            return (*made[:3], None if block_bias is None else made[3], None, None, None)
        return (*gradients(problem, ctx.backend, out, lse, grad_out, grad_lse), None, None, None)


def nobody_looks() -> bool:
    """Whether no mode, transform, tracer or compiler wants to see the operators."""
    return (
        not torch.compiler.is_compiling()
        and not _torch_internals.num_dispatch_modes()
        and _torch_internals.functorch_interpreter() is None
        and _torch_internals.tracing_state() is None
    )


def is_negated(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is minus what lies in its memory, which only the dispatcher sees to."""
    return any(x is not None and x.is_neg() for x in tensors)


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors stands for many, as with `is_grads_batched` of torch.autograd.grad."""
    return any(x is not None and _torch_internals.is_legacy_batched(x) for x in tensors)


def is_plain(call: Call | AttentionProblem) -> bool:
    """Whether nobody looks, no subclass of a tensor wants to see the operators, and what lies in memory is meant."""
    c = call
    return (
        nobody_looks()
        and type(c.q) in PLAIN_TYPES
        and type(c.k) in PLAIN_TYPES
        and type(c.v) in PLAIN_TYPES
        and type(c.block_bias) in PLAIN_TYPES
        and type(c.kv_lengths) in PLAIN_TYPES
        and type(c.key_padding_mask) in PLAIN_TYPES
        and not is_negated(c.q, c.k, c.v, c.block_bias)
    )


def attend_eagerly(problem: AttentionProblem, backend: str) -> tuple[Tensor, Tensor]:
    """out and lse of a plain problem."""
    if _torch_internals.is_forward_mode():
        check_no_tangents((problem.q, problem.k, problem.v, problem.block_bias))
    if not problem.needs_grad:
        out, lse = without_function_modes(backend_named(backend).forward, problem)
        return out, lse
    p = problem
    out, lse = EagerAttention.apply(p.q, p.k, p.v, p.block_bias, p.without_tensors(), backend, None)  # type: ignore[no-untyped-call]
    return out, lse
