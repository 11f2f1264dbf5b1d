"""Compile the kernels of a call for a GPU that need not be there."""

from __future__ import annotations

from ..compile_only import compile_only, replaced
from ..problem import AttentionProblem, OutputGrads
from . import launch


def compile_call(problem: AttentionProblem, capability: tuple[int, int], grads: list[OutputGrads]) -> None:
    """Compile what a call launches; its tensors are on the CPU, and nothing is computed."""
    with compile_only(capability), replaced(launch, capability_of=lambda _: capability):
        out, lse = launch.launch_forward(problem)
        for grad_out, grad_lse in grads:
            launch.launch_backward(problem, out, lse, grad_out, grad_lse)
