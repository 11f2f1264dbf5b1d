"""The kernels of a backward that is expected: compiled by other processes while this one compiles the forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..compile_workers import compile_beside, n_workers
from ..problem import AttentionProblem, Gradients
from .adding import Adding
from .launcher import descriptor
from .passes import BackwardCall, backward_of
from .single_pass import SINGLE_PASS

OF_CALL = ("Table", "Starts", "Padding", "Slopes", "Sinks", "Seed")  # what all passes of a wide call have


def compile_backward_beside(
    problem: AttentionProblem, out: Tensor, lse: Tensor, tensors: dict[str, Tensor]
) -> None:
    """Have the passes of the backward compiled that a forward with gradients will want; `tensors` are its pointers.

    For gradients of out as they mostly are, contiguous. With a block_bias nothing is done, for its sums take memory.
    """
    p = problem
    if not (p.q.requires_grad or p.k.requires_grad or p.v.requires_grad) or p.block_bias is not None:
        return
    if n_workers() == 0:
        return
    of_call = {name: x for name, x in tensors.items() if name in OF_CALL}
    # a kernel is compiled for types, so any tensors of them will do
    call = BackwardCall(p, out, lse, out, lse, False, Gradients(p.q, p.k, p.v, None), None, of_call)
    adding = SINGLE_PASS.choice(p)
    if isinstance(adding, Adding):
        arguments = SINGLE_PASS.arguments(call, SINGLE_PASS.memory(p, adding, n_chunks=1))
        compile_beside(SINGLE_PASS.kernel, described(arguments), SINGLE_PASS.options())
        return
    for each in backward_of(p).passes:
        compile_beside(each.kernel, described(each.arguments(call, lse)), each.options(p))


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel, with tensor descriptors made of what stands for them."""
    return {name: descriptor(*x) if isinstance(x, tuple) else x for name, x in arguments.items()}
