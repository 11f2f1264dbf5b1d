"""CpuBackend: chooses the method that computes a call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..problem import AttentionProblem, Backend, Gradients, beyond_plain_batch, beyond_plain_scores
from . import decode, one_call, row_batches, row_by_row, unfused
from .one_call_plan import CallPlan, plan_of
from .scratch import kept_buffers

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Mean elements of k per row: with fewer, a kernel call per row does not pay off (measured with blocks of 64 x 64).
MIN_ROW_ELEMENTS = 48 * 1024


class CpuBackend(Backend):
    """Block-sparse attention in plain PyTorch, in memory proportional to the tensors and the active blocks."""

    name = "cpu"

    def rejects(self, problem: AttentionProblem) -> str | None:
        """Why this backend cannot serve the call, with the argument and its value; None if it can."""
        beyond = beyond_plain_batch(problem) or beyond_plain_scores(problem)
        if beyond is not None:
            return beyond
        for name in ("q", "k", "v"):
            tensor: Tensor = getattr(problem, name)
            if tensor.device.type != "cpu":
                return f"{name} must be on the CPU, got {tensor.device}"
            if tensor.dtype not in DTYPES:
                return f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}"
        return None

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        """out (batch, q_len, num_heads, v_head_dim) in q's dtype; lse (batch, num_heads, q_len), float32 or float64."""
        with plain_arithmetic(), kept_buffers() as buffers:
            if not fits_fused_kernel(problem):
                return unfused.forward(problem, buffers)
            if decode.suits(problem):
                return decode.forward(problem, buffers)
            plan = usable_plan(problem, problem.k, problem.v)
            if plan is not None:
                return one_call.forward(problem, plan, buffers)
            if suits_row_by_row(problem):
                return row_by_row.forward(problem, buffers)
            return row_batches.forward(problem, buffers)

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""
        with plain_arithmetic(), kept_buffers() as buffers:
            if not fits_fused_kernel(problem) or grad_lse is not None:
                return unfused.backward(problem, out, lse, grad_out, grad_lse, buffers)
            plan = usable_plan(problem, problem.q, problem.k, problem.v, grad_out)
            if plan is not None:
                return one_call.backward(problem, plan, out, lse, grad_out, buffers)
            if suits_row_by_row(problem):
                return row_by_row.backward(problem, out, lse, grad_out, buffers)
            return row_batches.backward(problem, out, lse, grad_out, buffers)


CPU = CpuBackend()


@contextlib.contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Disable autograd and autocast; testing for autocast takes a tenth of the time of disabling it."""
    with torch.no_grad():
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                yield
        else:
            yield


def usable_plan(problem: AttentionProblem, *multiplied: Tensor) -> CallPlan | None:
    """The plan of a problem that is computed in one kernel call, or None.

    None also if the plan masks whole blocks and `multiplied` (tensors of which masked rows enter a product) holds NaN
    or infinities, because 0 * NaN is NaN. In the forward these are k and v: a row of q only affects itself.
    """
    plan = plan_of(problem)
    if plan is None or not plan.hides_blocks:
        return plan
    return plan if are_finite(*multiplied) else None


def are_finite(*tensors: Tensor) -> bool:
    """False if an element is NaN or infinite, or if the sum of the elements overflows."""
    return all(
        math.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()) for x in tensors
    )


def fits_fused_kernel(problem: AttentionProblem) -> bool:
    """Whether PyTorch's fused kernel supports everything that the problem uses."""
    p = problem
    return (
        p.block_bias is None
        and p.dropout_p == 0.0
        and max(p.rates) == 1
        and p.head_dim == p.v_head_dim
        and p.q.numel() > 0
    )


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
