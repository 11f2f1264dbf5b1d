"""CpuBackend: chooses between its two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import fused, unfused

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CpuBackend:
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
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            way = fused if fused.serves(problem) else unfused
            return way.forward(problem)

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if fused.serves(problem, grad_lse):
                return fused.backward(problem, out, lse, grad_out)
            return unfused.backward(problem, out, lse, grad_out, grad_lse)


CPU = CpuBackend()
