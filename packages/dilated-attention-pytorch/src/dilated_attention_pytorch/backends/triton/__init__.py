"""The portable Triton backend: any NVIDIA GPU since sm_80, and CPU tensors under Triton's interpreter."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ...config import TokenDilation
from ...launching.installed import HAS_TRITON, TRITON_DISTRIBUTIONS, installed_versions, release
from ...layout.layout import BlockLayout
from ..decode_problem import Decode, DecodeProblem
from ..problem import AttentionProblem, Backend, Gradients, OutputGrads

HALF = (torch.float16, torch.bfloat16)
# Triton reads the variable when a kernel is defined; what it said then is what counts.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def broken_interpreter(tritons: list[str], numpys: list[str]) -> str | None:
    """Why Triton's interpreter cannot run with the versions of triton and of numpy that are installed, or None."""
    if not numpys:
        return "numpy is not installed, which Triton's interpreter needs (pip install numpy)"
    for numpy in numpys:
        for triton in tritons:
            if (release(numpy) or (0, 0)) >= (2, 4) and (release(triton) or (99, 0)) < (3, 7):
                return f"numpy {numpy} breaks the interpreter of triton {triton}; install numpy<2.4 or triton>=3.7"
    return None


BROKEN_INTERPRETER = broken_interpreter(
    installed_versions("triton", *TRITON_DISTRIBUTIONS), installed_versions("numpy")
)


def unserved_sizes(q: Tensor, v_head_dim: int) -> str | None:
    """Why no kernel computes q, with keys of its head_dim and values of this one; None if one does."""
    if q.dtype not in (torch.float32, *HALF):
        return f"q has dtype {q.dtype}, needs float32, float16 or bfloat16"
    for name, dim in (("head_dim", q.shape[3]), ("v head_dim", v_head_dim)):
        if not 1 <= dim <= 256:
            return f"{name} is {dim}, needs at most 256"
    return None


def unserved_tensors(q: Tensor, v_head_dim: int) -> str | None:
    """Why no kernel computes q here, with keys of its head_dim and values of this one; None if one does."""
    if not HAS_TRITON:
        return "triton is not installed (pip install triton, on Linux)"
    if q.device.type == "cpu" and not INTERPRETED:
        return (
            "q is on the CPU; the kernels run there only in Triton's interpreter (TRITON_INTERPRET=1, slow)"
        )
    if q.device.type not in ("cpu", "cuda"):
        return f"q is on {q.device}, needs a CUDA device"
    if q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"compute capability {torch.cuda.get_device_capability(q.device)} is below (8, 0)"
    unserved = unserved_sizes(q, v_head_dim)
    if unserved is not None:
        return unserved
    if INTERPRETED and BROKEN_INTERPRETER is not None:
        return BROKEN_INTERPRETER
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return "q has dtype torch.bfloat16, whose products Triton's interpreter gets wrong; use float32 or float16"
    return None


def is_packed(problem: AttentionProblem) -> bool:
    """Whether sequences are packed: what clears the gaps between them wants whole tokens."""
    return problem.sequences is not None and problem.sequences.is_packed


class TritonBackend(Backend):
    """Fused kernels; see kernels/forward.py, kernels/backward.py and kernels/decode.py."""

    name = "triton"

    def rejects(self, problem: AttentionProblem) -> str | None:
        return unserved_tensors(problem.q, problem.v_head_dim)

    def rejects_for(self, problem: AttentionProblem, capability: tuple[int, int]) -> str | None:
        if not HAS_TRITON:
            return "triton is not installed (pip install triton, on Linux)"
        if capability < (8, 0):
            return f"compute capability {capability} is below (8, 0)"
        return unserved_sizes(problem.q, problem.v_head_dim)

    def compile_for(
        self, problem: AttentionProblem, capability: tuple[int, int], grads: list[OutputGrads]
    ) -> None:
        from .ahead import compile_call

        compile_call(problem, capability, grads)

    def prepare(self, layout: BlockLayout, dilation: TokenDilation | None) -> tuple[Tensor, ...]:
        """Lists in which blocks with a mask come last, of the rows and of the columns; nothing without masks."""
        masks = layout.block_masks
        if masks is None:
            return ()
        from .masked_lists import masked_lists

        rows, cols = layout.lists(dilation)
        return layout.keep(
            self.name, dilation, lambda: (*masked_lists(rows, masks), *masked_lists(cols, masks))
        )

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        from .launch import launch_forward

        return launch_forward(problem)

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        from .launch import launch_backward

        return launch_backward(problem, out, lse, grad_out, grad_lse)

    def forward_into(self, problem: AttentionProblem, out: Tensor) -> Tensor:
        from .launch import is_readable, launch_forward, unit_of

        if is_packed(problem) or not is_readable(out, unit_of(problem)):
            return super().forward_into(problem, out)
        return launch_forward(problem, out)[1]

    def backward_into(
        self,
        problem: AttentionProblem,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        dq: Tensor,
    ) -> Gradients:
        from .launch import is_readable, launch_backward, unit_of

        if is_packed(problem) or not is_readable(dq, unit_of(problem)):
            return super().backward_into(problem, out, lse, grad_out, grad_lse, dq)
        return launch_backward(problem, out, lse, grad_out, grad_lse, dq)

    def rejects_decode(self, problem: DecodeProblem) -> str | None:
        return unserved_tensors(problem.inputs.q, problem.v_head_dim)

    def decode(self, problem: DecodeProblem) -> tuple[Tensor, Tensor]:
        from .decode_launch import launch_decode

        return launch_decode(problem)

    def bind_decode(self, problem: DecodeProblem) -> Decode | None:
        from .decode_launch import bind_decode

        return bind_decode(problem)


TRITON = TritonBackend()
