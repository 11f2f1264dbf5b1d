"""Arguments and launches of the Hopper kernels; no maths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import badly_strided, tuning
from .backward import backward_kernel
from .forward import forward_kernel
from .kernel import LAUNCHES, Launch, multiprocessors, tile_counter
from .prepare import prepare_kernel


def forward_arguments(problem: AttentionProblem, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """Every argument of the forward kernel by name, tensor descriptors as (tensor, rows, rate).

    The counter is only of the right type: a launch takes one of its own.
    """
    p = problem
    tiles = tuning.FORWARD[p.head_dim, p.block_size]
    near, far = p.rates[0], p.rates[-1]
    n_groups = triton.cdiv(p.n_rows, 128 // p.block_size)
    return {
        "desc_q": (p.q, 64, 0),
        "desc_k": (p.k, p.block_size // near, near), "desc_v": (p.v, p.block_size // near, near),
        "desc_k_far": (p.k, p.block_size // far, far), "desc_v_far": (p.v, p.block_size // far, far),
        "desc_out": (out, 64, 0),
        "Lse": lse, "Offsets": p.rows.offsets, "Indices": p.rows.indices, "Schedule": p.row_schedule, "Counter": p.rows.offsets,
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.rows.indices.numel(), "n_groups": n_groups,
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads, "first_row": p.first_row,
        "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "heads_per_kv": p.num_heads // p.num_kv_heads,
        "heads_per_list": p.num_heads // p.layout_heads, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "BLOCK_N": p.block_size, "BLOCK_SIZE": p.block_size, "RATE": near, "FAR_RATE": far,
        "N_CLASSES": len(p.rates), "STAGES": tiles.stages, "IS_CAUSAL": p.is_causal,
        "EVEN_KV": p.kv_len % p.block_size == 0, "AHEAD": tiles.ahead, "UNROLL": tiles.unroll,
        "CONSUMER_REGISTERS": tuning.CONSUMER_REGISTERS,
    }  # fmt: skip


def prepare_arguments(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, stats: Tensor,
    turns: Tensor, grad_q: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Every argument of the kernel before the backward one by name."""
    p = problem
    of_lse = lse if grad_lse is None else grad_lse
    return {
        "Out": out, "GradOut": grad_out, "GradLse": of_lse, "Lse": lse, "Stats": stats, "Turns": turns, "GradQ": grad_q,
        "RowOffsets": p.rows.offsets,
        **{f"stride_o{axis}": out.stride(i) for i, axis in enumerate("bsh")},
        **{f"stride_g{axis}": grad_out.stride(i) for i, axis in enumerate("bsh")},
        **{f"stride_l{axis}": of_lse.stride(i) for i, axis in enumerate("bhs")},
        **{f"stride_x{axis}": grad_q.stride(i) for i, axis in enumerate("bsh")},
        "q_len": p.q_len, "n_rows": p.n_rows, "num_heads": p.num_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_query": p.first_row * p.block_size - p.q_offset, "D": p.head_dim, "BLOCK_SIZE": p.block_size,
        "BLOCK_M": tuning.BACKWARD[p.head_dim, p.block_size].block_m, "HAS_GRAD_LSE": grad_lse is not None,
    }  # fmt: skip


def backward_arguments(
    problem: AttentionProblem, grad_out: Tensor, grads: Gradients, scratch: Tensor, stats: Tensor, turns: Tensor,
    n_ring: int,
) -> dict[str, Any]:  # fmt: skip
    """Every argument of the backward kernel by name, tensor descriptors as (tensor, rows, rate)."""
    p = problem
    tiles = tuning.BACKWARD[p.head_dim, p.block_size]
    stride_xb, stride_xs, stride_xh, _ = grads.q.stride()
    return {
        "desc_q": (p.q, tiles.block_m, 0), "desc_k": (p.k, p.block_size, 0), "desc_v": (p.v, p.block_size, 0),
        "desc_grad": (grad_out, tiles.block_m, 0), "desc_dk": (grads.k, p.block_size, 0),
        "desc_dv": (grads.v, p.block_size, 0),
        "GradQ": grads.q, "Scratch": scratch, "Stats": stats, "Turns": turns, "RowOffsets": p.rows.offsets,
        "Offsets": p.cols.offsets, "Indices": p.cols.indices, "Entries": p.cols.entries, "Counter": p.rows.offsets,
        "stride_xb": stride_xb, "stride_xs": stride_xs, "stride_xh": stride_xh, "n_rows": p.n_rows, "n_cols": p.n_cols,
        "n_batch_kv_heads": p.batch * p.num_kv_heads, "num_heads": p.num_heads, "num_kv_heads": p.num_kv_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "n_ring": n_ring,
        "softmax_scale": p.softmax_scale, "D": p.head_dim, "BLOCK_M": tiles.block_m, "BLOCK_SIZE": p.block_size,
        "STAGES": tiles.stages, "KV_STAGES": tiles.kv_stages, "IS_CAUSAL": p.is_causal,
        "EVEN_KV": p.kv_len % p.block_size == 0, "PREFETCH": tiles.prefetch, "GATES": tuning.GATES,
        "HELPER_REGISTERS": tuning.HELPER_REGISTERS,
    }  # fmt: skip


FORWARD_OPTIONS = {"num_warps": 4, "maxnreg": tuning.LAUNCH_REGISTERS}
BACKWARD_OPTIONS = {"num_warps": 8, "maxnreg": tuning.LAUNCH_REGISTERS}
PREPARE_OPTIONS = {"num_warps": 4}


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy where it does not begin at a multiple of 16 bytes, which a trace cannot see."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.preserve_format)


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
        grid = min(n_tiles, multiprocessors(index))
        launch = LAUNCHES.keep(key, Launch(forward_kernel, arguments, FORWARD_OPTIONS, grid))
    assert p.row_schedule is not None
    launch.run(
        index,
        (q, k, v, k, v, out),
        (
            lse.data_ptr(), p.rows.offsets.data_ptr(), p.rows.indices.data_ptr(), p.row_schedule.data_ptr(),
            tile_counter(index),
        ),
    )  # fmt: skip
    return out, lse


def launch_backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Gradients:
    """Gradients of a problem."""
    p, index = problem, problem.q.get_device()
    if index != torch._C._cuda_getDevice():
        with torch.cuda.device(index):
            return launch_backward(problem, out, lse, grad_out, grad_lse)
    is_good = grad_out.is_contiguous() or badly_strided("grad_out", grad_out) is None
    if not is_good or grad_out.data_ptr() % 16:
        grad_out = grad_out.clone(memory_format=torch.contiguous_format)
    grad_q = torch.empty_like(p.q, memory_format=torch.contiguous_format)
    grad_k = torch.empty_like(p.k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(p.v, memory_format=torch.contiguous_format)
    grads = Gradients(grad_q, grad_k, grad_v, None)
    if p.q.numel() == 0 or p.k.numel() == 0:
        for grad in (grad_q, grad_k, grad_v):
            grad.zero_()
        return grads
    # all as they were in the forward, but for hooks on saved tensors
    out, lse = out if out.stride(3) == 1 else out.contiguous(), lse.contiguous()
    q, k, v = p.q, p.k, p.v
    if (out.data_ptr() | lse.data_ptr() | q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16:
        out, lse, q, k, v = (aligned(x) for x in (out, lse, q, k, v))
    of_lse = lse if grad_lse is None else grad_lse
    key = (
        "backward", p.signature, q.stride(), k.stride(), v.stride(), out.stride(), grad_out.stride(), of_lse.stride(),
        grad_lse is None, tuning.SCRATCH_BYTES,
    )  # fmt: skip
    launches = LAUNCHES.get(key)
    if launches is None:
        made = make_backward(replace(p, q=q, k=k, v=v), index, out, lse, grad_out, grad_lse, grads)
        launches = LAUNCHES.keep(key, made)
    # one tensor for all that the kernels keep: making one takes 2 us
    memory = torch.empty(launches.n_floats, dtype=torch.float32, device=q.device)
    scratch = memory.data_ptr()
    stats, turns = scratch + launches.stats_at, scratch + launches.turns_at
    launches.prepare.run(
        index,
        (),
        (
            out.data_ptr(), grad_out.data_ptr(), of_lse.data_ptr(), lse.data_ptr(), stats, turns, grad_q.data_ptr(),
            p.rows.offsets.data_ptr(),
        ),
    )  # fmt: skip
    launches.backward.run(
        index,
        (q, k, v, grad_out, grad_k, grad_v),
        (
            grad_q.data_ptr(), scratch, stats, turns, p.rows.offsets.data_ptr(), p.cols.offsets.data_ptr(),
            p.cols.indices.data_ptr(), p.cols.entries.data_ptr(), tile_counter(index),
        ),
    )  # fmt: skip
    return grads


class BackwardLaunches(NamedTuple):
    """Both kernels, and the memory between them: the float32 tiles of dq, then stats and turns from so many bytes on."""

    prepare: Launch
    backward: Launch
    n_floats: int
    stats_at: int
    turns_at: int


def make_backward(
    problem: AttentionProblem, index: int, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None,
    grads: Gradients,
) -> BackwardLaunches:  # fmt: skip
    """The launches of a problem and all others of its shapes and strides."""
    p, n_ring = problem, tuning.ring_of_heads(problem)
    block_m = tuning.BACKWARD[p.head_dim, p.block_size].block_m
    n_steps = p.batch * p.num_heads * p.n_rows * (p.block_size // block_m)
    n_scratch, n_stats = n_ring * p.n_rows * p.block_size * p.head_dim, n_steps * 2 * block_m
    floats, ints = lse, p.rows.offsets  # of the right types only: every call makes its own
    arguments = prepare_arguments(p, out, lse, grad_out, grad_lse, floats, ints, grads.q)
    prepare = Launch(prepare_kernel, arguments, PREPARE_OPTIONS, n_steps)
    arguments = backward_arguments(p, grad_out, grads, floats, floats, ints, n_ring)
    grid = min(p.batch * p.num_kv_heads * p.n_cols, multiprocessors(index))
    backward = Launch(backward_kernel, arguments, BACKWARD_OPTIONS, grid)
    return BackwardLaunches(
        prepare, backward, n_scratch + n_stats + n_steps, 4 * n_scratch, 4 * (n_scratch + n_stats)
    )
