"""Arguments and launches of the Hopper kernels; no maths."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...patterns.schedule import start_of_columns
from ..problem import AttentionProblem, Gradients
from . import badly_strided, tuning
from .backward import backward_kernel
from .forward import forward_kernel
from .kernel import LAUNCHES, Launch, multiprocessors, tile_counter


def forward_arguments(problem: AttentionProblem, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """Every argument of the forward kernel by name, tensor descriptors as (tensor, rows, rate).

    The counter is only of the right type: a launch takes one of its own.
    """
    p = problem
    tiles = tuning.FORWARD[p.head_dim, p.block_size]
    near, far = p.rates[0], p.rates[-1]
    near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
    registers = tuning.FORWARD_REGISTERS[tiles.programs]
    n_groups = triton.cdiv(p.n_rows, 128 // p.block_size)
    return {
        "desc_q": (p.q, 64, 0),
        "desc_k": (p.k, near_box, near), "desc_v": (p.v, near_box, near),
        "desc_k_far": (p.k, far_box, far), "desc_v_far": (p.v, far_box, far),
        "desc_out": (out, 64, 0),
        "Lse": lse, "Offsets": p.rows.offsets, "Indices": p.rows.indices, "Schedule": p.schedule, "Counter": p.rows.offsets,
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.rows.indices.numel(), "n_groups": n_groups,
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads, "first_row": p.first_row,
        "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "heads_per_kv": p.num_heads // p.num_kv_heads,
        "heads_per_list": p.num_heads // p.layout_heads, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "BLOCK_N": tiles.tile, "BLOCK_SIZE": p.block_size, "RATE": near, "FAR_RATE": far,
        "N_CLASSES": len(p.rates), "K_STAGES": tiles.k_stages, "V_STAGES": tiles.v_stages, "SLOTS": tiles.slots,
        "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0, "ORDER": tiles.order, "UNROLL": tiles.unroll,
        "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def columns_begin(problem: AttentionProblem) -> int:
    """Where in the schedule the columns begin."""
    p = problem
    return start_of_columns(p.layout_heads, p.n_rows, p.rows.indices.numel(), p.block_size)


class BackwardCall(NamedTuple):
    """A call of a backward with everything as the kernels read it, its results, and what its launches are kept under."""

    problem: AttentionProblem
    out: Tensor
    lse: Tensor
    grad_out: Tensor
    of_lse: Tensor  # the gradient of lse, or lse where there is none and the kernel does not read it
    has_grad_lse: bool
    grads: Gradients
    key: Hashable


def backward_arguments(call: BackwardCall, stats: Tensor, columns: bool) -> dict[str, Any]:
    """Every argument of a pass of the backward by name, tensor descriptors as (tensor, rows, rate)."""
    p, grads = call.problem, call.grads
    tiles = (tuning.COLUMNS if columns else tuning.ROWS)[p.head_dim, p.block_size]
    registers = tuning.BACKWARD_REGISTERS
    lists, n_lists, schedule = p.rows, p.n_rows, p.schedule
    own, other, sums, own_heads = (p.q, call.grad_out), (p.k, p.v), (grads.q, grads.q), p.num_heads
    if columns:
        assert schedule is not None
        lists, n_lists, schedule = p.cols, p.n_cols, schedule[columns_begin(p) :]
        own, other, sums, own_heads = other, own, (grads.k, grads.v), p.num_kv_heads
    n_groups = triton.cdiv(n_lists, 128 // p.block_size)
    return {
        "desc_a": (own[0], 64, 0), "desc_b": (own[1], 64, 0),
        "desc_x": (other[0], tiles.tile, 0), "desc_y": (other[1], tiles.tile, 0),
        "desc_sum_x": (sums[0], 64, 0), "desc_sum_y": (sums[1], 64, 0),
        "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.of_lse,
        "Offsets": lists.offsets, "Indices": lists.indices, "Schedule": schedule, "Counter": p.rows.offsets,
        **{f"stride_o{axis}": call.out.stride(i) for i, axis in enumerate("bsh")},
        **{f"stride_l{axis}": call.of_lse.stride(i) for i, axis in enumerate("bhs")},
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": lists.indices.numel(), "n_groups": n_groups,
        "n_lists": n_lists, "n_rows": p.n_rows, "own_heads": own_heads, "n_batch_heads": p.batch * own_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots, "HELD": tiles.held,
        "COLUMNS": columns, "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0,
        "HAS_GRAD_LSE": call.has_grad_lse and not columns, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def options(registers: tuning.Registers) -> dict[str, int]:
    """How a warp-specialised kernel is launched."""
    return {"num_warps": 4, "maxnreg": registers.launch}


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
    if index != torch._C._cuda_getDevice():
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
    assert p.schedule is not None
    launch.run(
        index,
        (q, k, v, k, v, out),
        (
            lse.data_ptr(), p.rows.offsets.data_ptr(), p.rows.indices.data_ptr(), p.schedule.data_ptr(),
            tile_counter(index),
        ),
    )  # fmt: skip
    return out, lse


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
    columns_at: int  # bytes from the start of the schedule


def make_backward(call: BackwardCall, index: int) -> BackwardLaunches:
    """The launches of a call and all others of its shapes and strides."""
    p = call.problem
    # of the right type only: every call makes its own
    floats = torch.empty(1, dtype=torch.float32, device=p.q.device)
    passes = []
    for columns in (False, True):
        arguments = backward_arguments(call, floats, columns)
        grid = min(arguments["n_groups"] * arguments["n_batch_heads"], multiprocessors(index))
        passes.append(Launch(backward_kernel, arguments, options(tuning.BACKWARD_REGISTERS), grid))
    return BackwardLaunches(passes[0], passes[1], floats_between(p), 4 * columns_begin(p))


def launch_backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Gradients:
    """Gradients of a problem."""
    index = problem.q.get_device()
    if index != torch._C._cuda_getDevice():
        with torch.cuda.device(index):
            return launch_backward(problem, out, lse, grad_out, grad_lse)
    call = backward_call(problem, out, lse, grad_out, grad_lse)
    if nothing_to_do(call):
        return call.grads
    p, grads = call.problem, call.grads
    assert p.schedule is not None
    key = ("backward", call.key)
    launches = LAUNCHES.get(key) or LAUNCHES.keep(key, make_backward(call, index))
    memory = torch.empty(launches.n_floats, dtype=torch.float32, device=out.device)
    stats, schedule = memory.data_ptr(), p.schedule.data_ptr()
    saved = (stats, call.out.data_ptr(), call.lse.data_ptr(), call.of_lse.data_ptr())
    launches.rows.run(
        index,
        (p.q, call.grad_out, p.k, p.v, grads.q, grads.q),
        (*saved, p.rows.offsets.data_ptr(), p.rows.indices.data_ptr(), schedule, tile_counter(index)),
    )
    launches.columns.run(
        index,
        (p.k, p.v, p.q, call.grad_out, grads.k, grads.v),
        (
            *saved, p.cols.offsets.data_ptr(), p.cols.indices.data_ptr(), schedule + launches.columns_at,
            tile_counter(index),
        ),
    )  # fmt: skip
    return grads
