"""Launches of the Hopper kernels; no maths."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _torch_internals
from ..problem import AttentionProblem, Forward, Gradients
from .launcher import LAUNCHES, Launch, multiprocessors, tile_counter
from .passes import FORWARD, BackwardCall, BackwardPass, backward_of
from .prepared import work_order_of
from .strides import badly_strided


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy if its address is no multiple of 16 bytes, which a trace cannot see."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.preserve_format)


def readable(x: Tensor) -> Tensor:
    """The tensor, or a contiguous copy if the tensor memory accelerator cannot read it."""
    if x.data_ptr() % 16 == 0 and (x.is_contiguous() or badly_strided("x", x) is None):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def empty_out(q: Tensor, v: Tensor) -> Tensor:
    """Memory for out; `empty_like` takes half the time of `new_empty`."""
    if q.shape[3] == v.shape[3]:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    return q.new_empty(*q.shape[:3], v.shape[3])


def launch_forward(problem: AttentionProblem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """out, which is `into` where that is given, and lse of a problem."""
    p, q, k, v, index = problem, problem.q, problem.k, problem.v, problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_forward(problem, into)
    if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16:
        return launch_forward(replace(p, q=aligned(q), k=aligned(k), v=aligned(v)), into)
    batch, q_len, num_heads, _ = q.shape
    # the fastest ways to make a tensor
    out = empty_out(q, v) if into is None else into
    lse = torch.empty_strided(
        (batch, num_heads, q_len), (num_heads * q_len, q_len, 1), dtype=torch.float32, device=q.device
    )
    key = ("forward", p.signature) if into is None else ("forward", p.signature, into.stride())
    launch = LAUNCHES.get(key)
    if launch is None:
        n_tiles = FORWARD.n_tiles(p)
        if not n_tiles:
            return out, lse
        grid = min(n_tiles, FORWARD.programs(p) * multiprocessors(index))
        made = Launch(FORWARD.kernel, FORWARD.arguments(p, out, lse), FORWARD.options(p), grid)
        launch = LAUNCHES.keep(key, made)
    launch.run(index, (q, k, v, k, v, out), (lse.data_ptr(), *FORWARD.lists(p), tile_counter(index)))
    return out, lse


def bind_forward(problem: AttentionProblem) -> Forward | None:
    """`launch_forward` for problems that differ from this one in q, k and v only, with everything else looked up once.

    None if no such problem was launched, for example without queries.
    """
    p, index, device = problem, problem.q.get_device(), problem.q.device
    launch = LAUNCHES.get(("forward", p.signature))
    if launch is None:
        return None
    batch, q_len, num_heads, _ = p.q.shape
    shape, steps = (batch, num_heads, q_len), (num_heads * q_len, q_len, 1)
    lists = FORWARD.lists(p)
    static_problem = p.without_inputs()  # keeps the tensors of these addresses alive

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16 or index != _torch_internals.current_device():
            return launch_forward(static_problem.with_inputs(q, k, v, None))
        out = empty_out(q, v)
        lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
        launch.run(index, (q, k, v, k, v, out), (lse.data_ptr(), *lists, tile_counter(index)))
        return out, lse

    return forward


def backward_call(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    into: Tensor | None = None,
) -> BackwardCall:
    """The call, with copies of tensors that the kernels cannot read; dq is `into` where that is given."""
    p = problem
    grad_out = readable(grad_out)
    # all unchanged since the forward, unless a hook on saved tensors changed them
    out, lse = out if out.stride(3) == 1 else out.contiguous(), lse.contiguous()
    q, k, v = readable(p.q), readable(p.k), readable(p.v)
    if q is not p.q or k is not p.k or v is not p.v:
        p = replace(p, q=q, k=k, v=v)
    out, lse = aligned(out), aligned(lse)
    has_grad_lse = grad_lse is not None
    grad_lse = lse if grad_lse is None else aligned(grad_lse)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format) if into is None else into
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    key = (
        p.signature, q.stride(), k.stride(), v.stride(), out.stride(), grad_out.stride(), grad_lse.stride(),
        has_grad_lse, None if into is None else into.stride(),
    )  # fmt: skip
    grads = Gradients(grad_q, grad_k, grad_v, None)
    return BackwardCall(p, out, lse, grad_out, grad_lse, has_grad_lse, grads, key)


def nothing_to_do(call: BackwardCall) -> bool:
    """Whether there are no queries or no keys; all gradients are then 0."""
    if call.grads.q.numel() and call.grads.k.numel():
        return False
    for grad in call.grads[:3]:
        grad.zero_()
    return True


class PassLaunch(NamedTuple):
    """A pass, ready to run."""

    of: BackwardPass
    launch: Launch
    work_order_at: int  # bytes from the start of the work order


class BackwardLaunches(NamedTuple):
    """The passes of a backward, and the memory that they share."""

    passes: list[PassLaunch]
    n_floats: int


def make_backward(call: BackwardCall, index: int) -> BackwardLaunches:
    """The launches of a call and of all others of its shapes and strides."""
    p = call.problem
    backward = backward_of(p)
    # only its type counts: every call makes its own
    floats = torch.empty(1, dtype=torch.float32, device=p.q.device)
    made = []
    for each in backward.passes:
        grid = min(each.n_tiles(p), multiprocessors(index))
        launch = Launch(each.kernel, each.arguments(call, floats), each.options(p), grid)
        made.append(PassLaunch(each, launch, 4 * each.work_order_at(p)))
    return BackwardLaunches(made, backward.n_floats(p))


def launch_backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    into: Tensor | None = None,
) -> Gradients:
    """Gradients of a problem; dq is `into` where that is given."""
    index = problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_backward(problem, out, lse, grad_out, grad_lse, into)
    call = backward_call(problem, out, lse, grad_out, grad_lse, into)
    if nothing_to_do(call):
        return call.grads
    key = ("backward", call.key)
    launches = LAUNCHES.get(key) or LAUNCHES.keep(key, make_backward(call, index))
    stats = torch.empty(launches.n_floats, dtype=torch.float32, device=out.device)
    saved = stats.data_ptr(), call.out.data_ptr(), call.lse.data_ptr(), call.grad_lse.data_ptr()
    work_order = work_order_of(call.problem).data_ptr()
    for each, launch, start in launches.passes:
        described, addresses = each.tensors(call, saved, work_order + start)
        launch.run(index, described, (*addresses, tile_counter(index)))
    return call.grads
