"""Arguments of the Hopper kernels: every one by name, tensor descriptors as (tensor, rows, rate); no maths."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import tuning
from .gluon_names import NEW_PTXAS
from .work_order import WorkOrder


def forward_arguments(problem: AttentionProblem, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """Every argument of the forward kernel.

    The counter is only of the right type: a launch takes one of its own.
    """
    p = problem
    tiles = tuning.FORWARD[p.head_dim, p.block_size]
    near, far = p.rates[0], p.rates[-1]
    near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
    registers = tuning.FORWARD_REGISTERS[tiles.programs]
    n_groups = offsets_of(p).rows.n_groups
    return {
        "desc_q": (p.q, 64, 0),
        "desc_k": (p.k, near_box, near), "desc_v": (p.v, near_box, near),
        "desc_k_far": (p.k, far_box, far), "desc_v_far": (p.v, far_box, far),
        "desc_out": (out, 64, 0),
        "Lse": lse, "Offsets": p.rows.indptr, "Indices": p.rows.indices, "WorkOrder": work_order_of(p), "Counter": p.rows.indptr,
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.rows.indices.numel(), "n_groups": n_groups,
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads, "first_row": p.first_row,
        "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "heads_per_kv": p.num_heads // p.num_kv_heads,
        "heads_per_list": p.num_heads // p.layout_heads, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "BLOCK_N": tiles.tile, "BLOCK_SIZE": p.block_size, "RATE": near, "FAR_RATE": far,
        "N_CLASSES": len(p.rates), "K_STAGES": tiles.k_stages, "V_STAGES": tiles.v_stages, "SLOTS": tiles.slots,
        "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0, "OVERLAP": tiles.overlap, "UNROLL": tiles.unroll,
        "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def work_order_of(problem: AttentionProblem) -> Tensor:
    """What `HopperBackend.prepare` made for the problem."""
    (work_order,) = problem.prepared
    return work_order


def offsets_of(problem: AttentionProblem) -> WorkOrder:
    """Where everything stands in it."""
    p = problem
    return WorkOrder.of(p.n_rows, p.n_cols, p.layout_heads, p.rows.indices.numel(), p.block_size, p.dilation)


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


def strides(call: BackwardCall) -> dict[str, int]:
    """The strides of what the dq pass reads without a descriptor."""
    return {f"stride_o{axis}": call.out.stride(i) for i, axis in enumerate("bsh")} | {
        f"stride_l{axis}": call.of_lse.stride(i) for i, axis in enumerate("bhs")
    }


def backward_arguments(call: BackwardCall, stats: Tensor, dkdv: bool) -> dict[str, Any]:
    """Every argument of a pass of the backward without token dilation."""
    p, grads = call.problem, call.grads
    tiles = (tuning.DKDV if dkdv else tuning.DQ)[p.head_dim, p.block_size]
    registers = tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    offsets = offsets_of(p)
    lists, n_lists, work_order, n_groups = p.rows, p.n_rows, work_order_of(p), offsets.rows.n_groups
    kept, streamed, sums, num_heads = (p.q, call.grad_out), (p.k, p.v), (grads.q, grads.q), p.num_heads
    if dkdv:
        lists, n_lists = p.cols, p.n_cols
        work_order, n_groups = work_order[offsets.columns_at :], offsets.columns.n_groups
        kept, streamed, sums, num_heads = streamed, kept, (grads.k, grads.v), p.num_kv_heads
    return {
        "desc_kept_qk": (kept[0], 64, 0), "desc_kept_gv": (kept[1], 64, 0),
        "desc_qk": (streamed[0], tiles.tile, 0), "desc_gv": (streamed[1], tiles.tile, 0),
        "desc_grad_qk": (sums[0], 64, 0), "desc_grad_v": (sums[1], 64, 0),
        "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.of_lse,
        "Offsets": lists.indptr, "Indices": lists.indices, "WorkOrder": work_order, "Counter": p.rows.indptr,
        **strides(call),
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": lists.indices.numel(), "n_groups": n_groups,
        "n_lists": n_lists, "n_rows": p.n_rows, "num_heads": num_heads, "n_batch_heads": p.batch * num_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots, "OPERANDS_IN_REGISTERS": tiles.operands_in_registers,
        "LATE_LSE": tiles.late_lse, "OVERLAP_STEPS": tiles.overlap_steps, "DKDV": dkdv, "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0,
        "HAS_GRAD_LSE": call.has_grad_lse and not dkdv, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def dilated_dq_arguments(call: BackwardCall, stats: Tensor) -> dict[str, Any]:
    """Every argument of the dq pass with token dilation."""
    p = call.problem
    tiles, registers = tuning.DQ[p.head_dim, p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    near, far = p.rates[0], p.rates[-1]
    near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
    return {
        "desc_q": (p.q, 64, 0), "desc_grad_out": (call.grad_out, 64, 0),
        "desc_k": (p.k, near_box, near), "desc_v": (p.v, near_box, near),
        "desc_k_far": (p.k, far_box, far), "desc_v_far": (p.v, far_box, far),
        "desc_dq": (call.grads.q, 64, 0),
        "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.of_lse,
        "Offsets": p.rows.indptr, "Indices": p.rows.indices, "WorkOrder": work_order_of(p), "Counter": p.rows.indptr,
        **strides(call),
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len,
        "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "RATE": near, "FAR_RATE": far, "N_CLASSES": len(p.rates),
        "STAGES": tiles.stages, "SLOTS": tiles.slots, "OPERANDS_IN_REGISTERS": tiles.operands_in_registers, "IS_CAUSAL": p.is_causal,
        "HAS_GRAD_LSE": call.has_grad_lse, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def dilated_dkdv_arguments(call: BackwardCall, stats: Tensor) -> dict[str, Any]:
    """Every argument of the dkdv pass with token dilation."""
    p, grads = call.problem, call.grads
    offsets = offsets_of(p)
    tiles, registers = tuning.DKDV[p.head_dim, p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    group_size = max(p.rates)
    kept = p.block_size // group_size
    n_groups = offsets.columns.n_groups
    return {
        "desc_k": (p.k, kept, group_size), "desc_v": (p.v, kept, group_size),
        "desc_q": (p.q, tiles.tile, 0), "desc_grad_out": (call.grad_out, tiles.tile, 0),
        "desc_dk": (grads.k, kept, group_size), "desc_dv": (grads.v, kept, group_size),
        "Stats": stats, "WorkOrder": work_order_of(p)[offsets.columns_at :], "Counter": p.rows.indptr,
        "n_groups": n_groups, "n_layout_groups": n_groups * p.layout_heads, "n_rows": p.n_rows,
        "num_kv_heads": p.num_kv_heads, "n_batch_kv_heads": p.batch * p.num_kv_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "GROUP_SIZE": group_size, "RATE": p.rates[0], "FAR_RATE": p.rates[-1],
        "N_CLASSES": len(p.rates), "STAGES": tiles.stages, "SLOTS": tiles.slots, "OPERANDS_IN_REGISTERS": tiles.operands_in_registers,
        "IS_CAUSAL": p.is_causal, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip
