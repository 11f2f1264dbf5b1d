"""CpuBackend: what it serves, and the parts and the sinks of a call around the method that computes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._torch_internals import num_function_modes, without_function_modes
from ...values import DTYPES
from ..decode_problem import DecodeProblem
from ..problem import AttentionProblem, Backend, Forward, Gradients
from . import cache_decode, choice, parts, single_queries
from .cache_problem import attention_of
from .scratch import kept_buffers
from .sinks import add_sinks, grad_of_sinks


class CpuBackend(Backend):
    """Block-sparse attention in plain PyTorch, in memory proportional to the tensors and the active blocks."""

    name = "cpu"

    def rejects(self, problem: AttentionProblem) -> str | None:
        """Why this backend cannot serve the call, with the argument and its value; None if it can."""
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
            compute = choice.forward if parts.is_plain(problem) else parts.forward
            out, lse = compute(problem, buffers)
            return (out, lse) if problem.sinks is None else add_sinks(problem.sinks, out, lse)

    def bind(self, problem: AttentionProblem) -> Forward | None:
        """The forward of a plain problem that has no sinks, for other q, k and v; None for other problems."""
        if problem.sinks is not None or not parts.is_plain(problem):
            return None
        static_problem = problem.without_inputs()

        def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            made = static_problem.with_inputs(q, k, v)
            if num_function_modes():
                return without_function_modes(plain_forward, made)  # type: ignore[no-any-return]
            return plain_forward(made)

        return forward

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""
        with plain_arithmetic(), kept_buffers() as buffers:
            compute = choice.backward if parts.is_plain(problem) else parts.backward
            grads = compute(problem, out, lse, grad_out, grad_lse, buffers)
            if problem.sinks is None:
                return grads
            return grads._replace(sinks=grad_of_sinks(problem.sinks, out, lse, grad_out, grad_lse))

    def rejects_decode(self, problem: DecodeProblem) -> str | None:
        """`rejects` of a decoding call."""
        q = problem.inputs.q
        if q.device.type != "cpu":
            return f"q must be on the CPU, got {q.device}"
        if q.dtype not in DTYPES:
            return f"q must be float32, float64, bfloat16 or float16, got {q.dtype}"
        return None

    def decode(self, problem: DecodeProblem) -> tuple[Tensor, Tensor]:
        """`forward` of a decoding call."""
        is_single, is_paged = single_queries.suits_decode(problem), problem.inputs.block_table is not None
        with plain_arithmetic(), kept_buffers() as buffers:
            if not is_paged and (problem.batch == 1 or not is_single):
                out, lse = parts.forward(attention_of(problem), buffers)
            elif is_single:
                out, lse = single_queries.decode(problem, buffers)
            else:
                return cache_decode.forward(problem)
            sinks = problem.inputs.sinks
            return (out, lse) if sinks is None else add_sinks(sinks, out, lse)


def plain_forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a plain problem that has no sinks."""
    with plain_arithmetic(), kept_buffers() as buffers:
        return choice.forward(problem, buffers)


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
