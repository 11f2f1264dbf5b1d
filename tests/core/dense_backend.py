"""A backend that serves every problem with the definition, to test what is around the backends."""

from __future__ import annotations

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.problem import AttentionProblem, Backend, Gradients
from dilated_attention_pytorch.backends.reference import attention_reference
from dilated_attention_pytorch.ops import DIFFERENTIABLE


class DenseBackend(Backend):
    """Keeps the problems that it was given."""

    name = "dense"

    def __init__(self) -> None:
        self.problems: list[AttentionProblem] = []

    def rejects(self, problem: AttentionProblem) -> str | None:
        return None

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        self.problems.append(problem)
        with torch.no_grad():
            out, lse = attention_reference(problem)
        return out.contiguous(), lse.contiguous()

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        given = {name: getattr(problem, name) for name in DIFFERENTIABLE}
        leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x is not None}
        with torch.enable_grad():
            results = attention_reference(
                problem.with_inputs(*(leaves.get(name) for name in DIFFERENTIABLE))  # type: ignore[arg-type]
            )
        outputs, grads_of = (results[:1], [grad_out]) if grad_lse is None else (results, [grad_out, grad_lse])
        found = torch.autograd.grad(outputs, list(leaves.values()), grads_of)
        grads = dict(zip(leaves, found, strict=True))
        return Gradients(**{name: grads.get(name) for name in DIFFERENTIABLE})
