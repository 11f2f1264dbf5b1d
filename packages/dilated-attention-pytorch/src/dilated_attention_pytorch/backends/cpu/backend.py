"""CpuBackend: chooses between the ways in which a call can be computed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..problem import AttentionProblem, Backend, Gradients, beyond_plain_batch
from . import batches, decode, small, unfused, window
from .scratch import kept_buffers

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Elements of k that a row sees: with fewer a row is not worth a call of the kernel (measured on blocks of 64 by 64).
LEAST_KEYS = 48 * 1024


class CpuBackend(Backend):
    """Block-sparse attention in plain PyTorch, in memory proportional to the tensors and the active blocks."""

    name = "cpu"

    def rejects(self, problem: AttentionProblem) -> str | None:
        """Why this backend cannot serve the call, with the argument and its value; None if it can."""
        beyond = beyond_plain_batch(problem)
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
            if not is_fused(problem):
                return unfused.forward(problem, buffers)
            if decode.suits(problem):
                return decode.forward(problem, buffers)
            plan = small_plan(problem, problem.k, problem.v)
            if plan is not None:
                return small.forward(problem, plan, buffers)
            if suits_window(problem):
                return window.forward(problem, buffers)
            return batches.forward(problem, buffers)

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""
        with plain_arithmetic(), kept_buffers() as buffers:
            if not is_fused(problem) or grad_lse is not None:
                return unfused.backward(problem, out, lse, grad_out, grad_lse, buffers)
            plan = small_plan(problem, problem.q, problem.k, problem.v, grad_out)
            if plan is not None:
                return small.backward(problem, plan, out, lse, grad_out, buffers)
            if suits_window(problem):
                return window.backward(problem, out, lse, grad_out, buffers)
            return batches.backward(problem, out, lse, grad_out, buffers)


CPU = CpuBackend()


@contextlib.contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No graph and no autocast, which takes ten times as long to switch off as to look for."""
    with torch.no_grad():
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                yield
        else:
            yield


def small_plan(problem: AttentionProblem, *multiplied: Tensor) -> small.Plan | None:
    """The plan of a small call. None too where its mask would multiply NaN or infinities of other blocks with 0.

    Of the forward that are k and v: a row of q is multiplied in its own row alone.
    """
    plan = small.plan_of(problem)
    if plan is None or not plan.hides_blocks:
        return plan
    return plan if are_finite(*multiplied) else None


def are_finite(*tensors: Tensor) -> bool:
    """Whether no number is NaN or infinite; False too where their sum overflows."""
    return all(
        math.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()) for x in tensors
    )


def is_fused(problem: AttentionProblem) -> bool:
    """Whether PyTorch's fused kernel knows all that the problem asks for."""
    p = problem
    return (
        p.block_bias is None
        and p.dropout_p == 0.0
        and max(p.rates) == 1
        and p.head_dim == p.v_head_dim
        and p.q.numel() > 0
    )


def suits_window(problem: AttentionProblem) -> bool:
    """Whether the rows of the layout are worth a call of the kernel each, and keep all threads busy."""
    p = problem
    n_elements = p.rows.indices.numel() * p.block_size * p.num_kv_heads * p.head_dim
    return (
        p.layout_heads == 1
        and p.n_rows > 1
        and p.num_kv_heads >= 2 * torch.get_num_threads() - 1
        and n_elements >= LEAST_KEYS * p.n_rows
    )
