"""The cost of a call of ours without the Python code of the library, to tell how much of a call is Python.

It consists of two allocations (out and lse), the kernel launch by the driver and, with gradients, an autograd node. None
of these can be avoided from Python, so the library can only save the time above this floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, _torch_internals
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.registry import choose_backend
from dilated_attention_pytorch.functional import make_problem

from .cases import Case

Forward = Callable[[], tuple[Tensor, Tensor]]


def prepare(case: Case, layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor) -> Forward | None:
    """The bare forward of a call that has been made before; None unless the backend `hopper` serves it."""
    problem = make_problem(
        q, k, v, layout, is_causal=case.causal, segment_lengths=case.segment_lengths,
        dilation_rates=case.dilation_rates,
    )  # fmt: skip
    backend = choose_backend(problem)
    return bare_forward(problem.prepared_by(backend, layout)) if backend.name == "hopper" else None


def bare_forward(problem: AttentionProblem) -> Forward | None:
    """The allocations and the launch of `launch_forward`; everything else is done once, here.

    None if no launch of a plain call is cached or the launcher function of this Triton is unknown. The launch always writes to the same
    out and lse, because passing new addresses would take Python code.
    """
    # imported late: not every Triton provides what these files import
    from dilated_attention_pytorch.backends.hopper import launcher
    from dilated_attention_pytorch.launching import raw_launch

    p, q, k, v, index = problem, problem.q, problem.k, problem.v, problem.q.get_device()
    kept = launcher.LAUNCHES.get(("forward", p.signature))
    if kept is None or kept.launch is None or kept.launch.raw_launch is None or kept.absent is None:
        return None
    launch = kept.launch
    batch, q_len, num_heads, _ = q.shape
    shape, steps, device = (batch, num_heads, q_len), (num_heads * q_len, q_len, 1), q.device
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
    made = (
        *launch.describe((q, k, v, k, v, out)),
        lse.data_ptr(), p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), p.prepared[0].data_ptr(),
        launcher.tile_counter(index),  # shared by all launches, which run one after the other
        *kept.absent, *launch.numbers,
    )  # fmt: skip
    stream = _torch_internals.current_raw_stream(index)
    before = (launch.grid, 1, 1, stream, launch.function, *launch.options)
    launch_in_c, arguments = launch.raw_launch, (*before, *(made if raw_launch.ARGUMENTS_APART else (made,)))

    # `alive` holds the tensors, of which the launch only has the addresses
    def forward(alive: object = (problem, out, lse)) -> tuple[Tensor, Tensor]:
        new_out = torch.empty_like(q, memory_format=torch.contiguous_format)
        new_lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
        launch_in_c(*arguments)
        return new_out, new_lse

    return forward


class BareNode(torch.autograd.Function):
    """An autograd node with the arguments and saved tensors of `EagerAttention`, around a bare forward; no backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bare: Forward,
    ) -> tuple[Tensor, Tensor]:
        out, lse = bare()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = bare
        ctx.set_materialize_grads(False)
        return out, lse


def with_gradients(bare: Forward, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """The bare forward for inputs that require gradients."""
    return lambda: BareNode.apply(q, k, v, bare)  # type: ignore[no-untyped-call]
