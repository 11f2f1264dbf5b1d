"""The Hopper backend on the CPU, for calls through the whole library."""

from __future__ import annotations

from unittest import mock

from torch import Tensor

from dilated_attention_pytorch.backends import hopper
from dilated_attention_pytorch.backends.hopper import HopperBackend
from dilated_attention_pytorch.backends.problem import AttentionProblem, Forward, Gradients

from .launches import emulated_launches


class EmulatedBackend(HopperBackend):
    """Launches are emulated, and the device is not asked for."""

    def rejects(self, problem: AttentionProblem) -> str | None:
        if not hasattr(hopper, "rejected_device"):
            return None
        with mock.patch.object(hopper, "rejected_device", return_value=None):
            return hopper.rejected_call(problem)

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        with emulated_launches() as module:
            made: tuple[Tensor, Tensor] = module.launch_forward(problem)
        return made

    def bind(self, problem: AttentionProblem) -> Forward | None:
        return None

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        with emulated_launches() as module:
            return Gradients(*module.launch_backward(problem, out, lse, grad_out, grad_lse))

    def forward_into(self, problem: AttentionProblem, out: Tensor) -> Tensor:
        with emulated_launches() as module:
            lse: Tensor = module.launch_forward(problem, out)[1]
        return lse
