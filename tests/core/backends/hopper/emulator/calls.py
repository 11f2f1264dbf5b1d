"""Forward and backward of a problem, launched as the Hopper backend does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients

from .kernels import emulated
from .programs import launch


def run(
    kernel: Any, arguments: dict[str, Any], grid: int, *, release: str | None = None, **options: Any
) -> None:
    """Run one kernel with arguments as passes.py makes them.

    Args:
        kernel: from the modules of `emulated`.
        arguments: by name; a tile counter stands for that of passes.py.
        grid: how many programs.
        release: of Triton, as for `emulated`.
        options: of `programs.launch`: seed, delay, preempt, seconds.
    """
    arguments = dict(arguments)
    counter = None
    if "Counter" in arguments:
        counter = arguments["Counter"] = torch.zeros(1, dtype=torch.int32)
    launch(kernel, arguments, grid, emulated(release).launcher.box_layout, **options)
    if counter is not None and counter.item():
        raise AssertionError(f"the tile counter is {counter.item()} after the launch, not 0")


def forward(
    problem: AttentionProblem, programs: int = 2, *, release: str | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """out and lse of a problem that `prepared_by(HOPPER, layout)` has made; `programs` at most."""
    p = problem
    one = emulated(release).passes.FORWARD
    out = torch.full((*p.q.shape[:3], p.v_head_dim), float("nan"), dtype=p.q.dtype)
    lse = torch.full((p.batch, p.num_heads, p.q_len), float("nan"))
    grid = min(one.n_tiles(p), programs)
    if grid:
        run(one.kernel, one.arguments(p, out, lse), grid, release=release, **options)
    return out, lse


def backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    programs: int = 2,
    *,
    release: str | None = None,
    **options: Any,
) -> Gradients:
    """Gradients of a problem, in all passes of the backward that serves it."""
    passes, launches = emulated(release).passes, emulated(release).launch
    call = launches.backward_call(problem, out, lse, grad_out, grad_lse)
    for grad in call.grads:
        if grad is not None:
            grad.fill_(float("nan"))
    if launches.nothing_to_do(call):
        return Gradients(*call.grads)
    of_problem = passes.backward_of(call.problem)
    stats = torch.full((of_problem.n_floats(call.problem),), float("nan"))
    for each in of_problem.passes:
        grid = min(each.n_tiles(call.problem), programs)
        run(each.kernel, each.arguments(call, stats), grid, release=release, **options)
    return Gradients(*call.grads)
