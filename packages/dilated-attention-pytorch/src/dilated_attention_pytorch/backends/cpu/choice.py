"""Which method computes a plain problem: one layout for exactly its positions, the same for all batch elements."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import decode, one_call, row_batches, row_by_row, unfused
from .finite import are_finite
from .one_call_plan import CallPlan, plan_of
from .pair_masks import changes_pairs
from .scratch import Buffers

# Mean elements of k per row: with fewer, a kernel call per row does not pay off (measured with blocks of 64 x 64).
MIN_ROW_ELEMENTS = 48 * 1024


def forward(problem: AttentionProblem, buffers: Buffers, first_sequence: int = 0) -> tuple[Tensor, Tensor]:
    """out and lse of a plain problem, without sinks; `first_sequence` is the number of its first one in the call, for dropout."""
    if not fits_fused_kernel(problem):
        if suits_masked_batches(problem, problem.k, problem.v):
            return row_batches.forward(problem, buffers)
        return unfused.forward(problem, buffers, first_sequence)
    if decode.suits(problem):
        return decode.forward(problem, buffers)
    plan = usable_plan(problem, problem.k, problem.v)
    if plan is not None:
        return one_call.forward(problem, plan, buffers)
    if suits_row_by_row(problem):
        return row_by_row.forward(problem, buffers)
    return row_batches.forward(problem, buffers)


def backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Buffers,
    first_sequence: int = 0,
    grad_bias: Tensor | None = None,
) -> Gradients:
    """Gradients of a plain problem; out and lse include the sinks. Adds to `grad_bias`, of the shape of block_bias."""
    if not fits_fused_kernel(problem) or grad_lse is not None:
        multiplied = (problem.q, problem.k, problem.v, grad_out)
        if grad_lse is None and suits_masked_batches(problem, *multiplied):
            return row_batches.backward(problem, out, lse, grad_out, buffers)
        return unfused.backward(problem, out, lse, grad_out, grad_lse, buffers, first_sequence, grad_bias)
    plan = usable_plan(problem, problem.q, problem.k, problem.v, grad_out)
    if plan is not None:
        return one_call.backward(problem, plan, out, lse, grad_out, buffers)
    if suits_row_by_row(problem):
        return row_by_row.backward(problem, out, lse, grad_out, buffers)
    return row_batches.backward(problem, out, lse, grad_out, buffers)


def usable_plan(problem: AttentionProblem, *multiplied: Tensor) -> CallPlan | None:
    """The plan of a problem that is computed in one kernel call, or None.

    None also if the plan masks whole blocks and `multiplied` (tensors of which masked rows enter a product) holds NaN
    or infinities, because 0 * NaN is NaN. In the forward these are k and v: a row of q only affects itself.
    """
    plan = plan_of(problem)
    if plan is None or not plan.hides_blocks:
        return plan
    return plan if are_finite(*multiplied) else None


def fits_fused_kernel(problem: AttentionProblem) -> bool:
    """Whether PyTorch's fused kernel supports everything that the problem uses, without a mask of its own for every tile."""
    return fits_masked_kernel(problem) and not changes_pairs(problem)


def fits_masked_kernel(problem: AttentionProblem) -> bool:
    """Whether PyTorch's fused kernel supports everything that the problem uses."""
    p = problem
    return (
        p.block_bias is None
        and p.dropout_p == 0.0
        and max(p.rates) == 1
        and p.head_dim == p.v_head_dim
        and p.q.numel() > 0
        and p.softcap == 0.0
    )


def suits_masked_batches(problem: AttentionProblem, *multiplied: Tensor) -> bool:
    """Whether rows in batches, each with its mask, are the fastest: `multiplied` are finite, because 0 * NaN is NaN."""
    return problem.n_rows > 1 and fits_masked_kernel(problem) and are_finite(*multiplied)


def suits_row_by_row(problem: AttentionProblem) -> bool:
    """Whether a row has enough work for a kernel call of its own, and enough kv heads to keep all threads busy."""
    p = problem
    n_elements = p.rows.indices.numel() * p.block_size * p.num_kv_heads * p.head_dim
    return (
        p.layout_heads == 1
        and p.n_rows > 1
        and p.num_kv_heads >= 2 * torch.get_num_threads() - 1
        and n_elements >= MIN_ROW_ELEMENTS * p.n_rows
    )
