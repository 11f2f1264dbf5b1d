"""Launches of the Hopper kernels; no maths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _torch_internals
from ..problem import AttentionProblem, Forward, Gradients
from . import tuning
from .arguments import (
    BackwardCall,
    backward_arguments,
    dilated_dkdv_arguments,
    dilated_dq_arguments,
    forward_arguments,
    offsets_of,
    work_order_of,
)
from .gluon_names import COMPILER_OPTIONS, NEW_PTXAS
from .kernels.backward import backward_kernel
from .kernels.backward_dilated_dkdv import dilated_dkdv_kernel
from .kernels.backward_dilated_dq import dilated_dq_kernel
from .kernels.forward import forward_kernel
from .launcher import LAUNCHES, Launch, multiprocessors, tile_counter
from .strides import badly_strided


def options(registers: tuning.Registers) -> dict[str, Any]:
    """How a warp-specialised kernel is compiled and launched; fused multiply-adds are no longer the default in Triton 3.10."""
    return {"num_warps": 4, "maxnreg": registers.launch, "enable_fp_fusion": True, **COMPILER_OPTIONS}


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy where it does not begin at a multiple of 16 bytes, which a trace cannot see."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.preserve_format)


def readable(x: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where the tensor memory accelerator cannot read it."""
    if x.data_ptr() % 16 == 0 and (x.is_contiguous() or badly_strided("x", x) is None):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def launch_forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a problem."""
    p, q, k, v, index = problem, problem.q, problem.k, problem.v, problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_forward(problem)
    if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16:
        return launch_forward(replace(p, q=aligned(q), k=aligned(k), v=aligned(v)))
    batch, q_len, num_heads, _ = q.shape
    # of all ways to make a tensor these are the fastest
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty_strided(
        (batch, num_heads, q_len), (num_heads * q_len, q_len, 1), dtype=torch.float32, device=q.device
    )
    key = ("forward", p.signature)
    launch = LAUNCHES.get(key)
    if launch is None:
        arguments = forward_arguments(p, out, lse)
        n_tiles = arguments["n_groups"] * arguments["n_batch_heads"]
        if not n_tiles:
            return out, lse
        programs = tuning.FORWARD[p.head_dim, p.block_size].programs
        grid = min(n_tiles, programs * multiprocessors(index))
        launch = LAUNCHES.keep(
            key, Launch(forward_kernel, arguments, options(tuning.FORWARD_REGISTERS[programs]), grid)
        )
    launch.run(
        index,
        (q, k, v, k, v, out),
        (
            lse.data_ptr(), p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), work_order_of(p).data_ptr(),
            tile_counter(index),
        ),
    )  # fmt: skip
    return out, lse


def bind_forward(problem: AttentionProblem) -> Forward | None:
    """`launch_forward` of problems like this one but for their q, k and v, with all else looked up once.

    None where no such problem was launched, as without queries.
    """
    p, index, device = problem, problem.q.get_device(), problem.q.device
    launch = LAUNCHES.get(("forward", p.signature))
    if launch is None:
        return None
    batch, q_len, num_heads, _ = p.q.shape
    shape, steps = (batch, num_heads, q_len), (num_heads * q_len, q_len, 1)
    lists = p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), work_order_of(p).data_ptr()
    static_problem = p.without_inputs()  # keeps what the addresses are of

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16 or index != _torch_internals.current_device():
            return launch_forward(static_problem.with_inputs(q, k, v, None))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
        launch.run(index, (q, k, v, k, v, out), (lse.data_ptr(), *lists, tile_counter(index)))
        return out, lse

    return forward


def backward_call(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> BackwardCall:
    """The call with copies of what lies badly in memory."""
    p = problem
    grad_out = readable(grad_out)
    # all as they were in the forward, but for hooks on saved tensors
    out, lse = out if out.stride(3) == 1 else out.contiguous(), lse.contiguous()
    q, k, v = readable(p.q), readable(p.k), readable(p.v)
    if q is not p.q or k is not p.k or v is not p.v:
        p = replace(p, q=q, k=k, v=v)
    out, lse = aligned(out), aligned(lse)
    has_grad_lse = grad_lse is not None
    of_lse = lse if grad_lse is None else aligned(grad_lse)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    key = (
        p.signature, q.stride(), k.stride(), v.stride(), out.stride(), grad_out.stride(), of_lse.stride(),
        has_grad_lse,
    )  # fmt: skip
    grads = Gradients(grad_q, grad_k, grad_v, None)
    return BackwardCall(p, out, lse, grad_out, of_lse, has_grad_lse, grads, key)


def nothing_to_do(call: BackwardCall) -> bool:
    """Whether there are no queries or no keys; all gradients are then 0."""
    if call.grads.q.numel() and call.grads.k.numel():
        return False
    for grad in call.grads[:3]:
        grad.zero_()
    return True


def floats_between(problem: AttentionProblem) -> int:
    """float32 numbers that the kernels of a backward pass on: lse and delta of every query."""
    p = problem
    return 2 * p.batch * p.num_heads * p.n_rows * p.block_size


class BackwardLaunches(NamedTuple):
    """The two passes, and the memory between them."""

    rows: Launch
    columns: Launch
    n_floats: int
    columns_at: int  # bytes from the start of the work order


def make_backward(call: BackwardCall, index: int) -> BackwardLaunches:
    """The launches of a call and all others of its shapes and strides."""
    p = call.problem
    # of the right type only: every call makes its own
    floats = torch.empty(1, dtype=torch.float32, device=p.q.device)
    if p.dilation is None:
        kernels = backward_kernel, backward_kernel
        passes = backward_arguments(call, floats, False), backward_arguments(call, floats, True)
        tiles = [arguments["n_groups"] * arguments["n_batch_heads"] for arguments in passes]
    else:
        kernels = dilated_dq_kernel, dilated_dkdv_kernel
        rows, columns = passes = dilated_dq_arguments(call, floats), dilated_dkdv_arguments(call, floats)
        tiles = [
            rows["n_rows"] * rows["n_batch_heads"],
            columns["GROUP_SIZE"] * columns["n_groups"] * columns["n_batch_kv_heads"],
        ]
    made = [
        Launch(
            kernel,
            arguments,
            options(tuning.BACKWARD_REGISTERS[NEW_PTXAS]),
            min(n_tiles, multiprocessors(index)),
        )
        for kernel, arguments, n_tiles in zip(kernels, passes, tiles, strict=True)
    ]
    return BackwardLaunches(made[0], made[1], floats_between(p), 4 * offsets_of(p).columns_at)


def launch_backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Gradients:
    """Gradients of a problem."""
    index = problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_backward(problem, out, lse, grad_out, grad_lse)
    call = backward_call(problem, out, lse, grad_out, grad_lse)
    if nothing_to_do(call):
        return call.grads
    key = ("backward", call.key)
    launches = LAUNCHES.get(key) or LAUNCHES.keep(key, make_backward(call, index))
    memory = torch.empty(launches.n_floats, dtype=torch.float32, device=out.device)
    run_passes(launches, call, memory.data_ptr(), index)
    return call.grads


def run_passes(launches: BackwardLaunches, call: BackwardCall, stats: int, index: int) -> None:
    """Launch the pass over rows, which leaves `stats` to that over columns, and that."""
    p, grads = call.problem, call.grads
    work_order = work_order_of(p).data_ptr()
    saved = (stats, call.out.data_ptr(), call.lse.data_ptr(), call.of_lse.data_ptr())
    of_rows = (*saved, p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), work_order)
    of_columns: tuple[int, ...] = (
        *saved, p.cols.indptr.data_ptr(), p.cols.indices.data_ptr(), work_order + launches.columns_at,
    )  # fmt: skip
    described: tuple[Tensor, ...] = (p.q, call.grad_out, p.k, p.v, grads.q, grads.q)
    if p.dilation is not None:
        described = (p.q, call.grad_out, p.k, p.v, p.k, p.v, grads.q)
        of_columns = (stats, work_order + launches.columns_at)
    launches.rows.run(index, described, (*of_rows, tile_counter(index)))
    described = (p.k, p.v, p.q, call.grad_out, grads.k, grads.v)
    launches.columns.run(index, described, (*of_columns, tile_counter(index)))
