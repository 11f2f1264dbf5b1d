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
        "Lse": lse, "Offsets": p.rows.indptr, "Indices": p.rows.indices, "Schedule": work_order_of(p), "Counter": p.rows.indptr,
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.rows.indices.numel(), "n_groups": n_groups,
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads, "first_row": p.first_row,
        "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "heads_per_kv": p.num_heads // p.num_kv_heads,
        "heads_per_list": p.num_heads // p.layout_heads, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "BLOCK_N": tiles.tile, "BLOCK_SIZE": p.block_size, "RATE": near, "FAR_RATE": far,
        "N_CLASSES": len(p.rates), "K_STAGES": tiles.k_stages, "V_STAGES": tiles.v_stages, "SLOTS": tiles.slots,
        "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0, "ORDER": tiles.order, "UNROLL": tiles.unroll,
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
    """The strides of what the rows pass reads without a descriptor."""
    return {f"stride_o{axis}": call.out.stride(i) for i, axis in enumerate("bsh")} | {
        f"stride_l{axis}": call.of_lse.stride(i) for i, axis in enumerate("bhs")
    }


def backward_arguments(call: BackwardCall, stats: Tensor, columns: bool) -> dict[str, Any]:
    """Every argument of a pass of the backward without token dilation."""
    p, grads = call.problem, call.grads
    tiles = (tuning.COLUMNS if columns else tuning.ROWS)[p.head_dim, p.block_size]
    registers = tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    offsets = offsets_of(p)
    lists, n_lists, work_order, n_groups = p.rows, p.n_rows, work_order_of(p), offsets.rows.n_groups
    own, other, sums, own_heads = (p.q, call.grad_out), (p.k, p.v), (grads.q, grads.q), p.num_heads
    if columns:
        lists, n_lists = p.cols, p.n_cols
        work_order, n_groups = work_order[offsets.columns_at :], offsets.columns.n_groups
        own, other, sums, own_heads = other, own, (grads.k, grads.v), p.num_kv_heads
    return {
        "desc_a": (own[0], 64, 0), "desc_b": (own[1], 64, 0),
        "desc_x": (other[0], tiles.tile, 0), "desc_y": (other[1], tiles.tile, 0),
        "desc_sum_x": (sums[0], 64, 0), "desc_sum_y": (sums[1], 64, 0),
        "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.of_lse,
        "Offsets": lists.indptr, "Indices": lists.indices, "Schedule": work_order, "Counter": p.rows.indptr,
        **strides(call),
        "n_layout_groups": n_groups * p.layout_heads, "n_entries": lists.indices.numel(), "n_groups": n_groups,
        "n_lists": n_lists, "n_rows": p.n_rows, "own_heads": own_heads, "n_batch_heads": p.batch * own_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots, "HELD": tiles.held,
        "LATE": tiles.late, "CHAINED": tiles.chained, "COLUMNS": columns, "IS_CAUSAL": p.is_causal, "EVEN_KV": p.kv_len % p.block_size == 0,
        "HAS_GRAD_LSE": call.has_grad_lse and not columns, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def dilated_rows_arguments(call: BackwardCall, stats: Tensor) -> dict[str, Any]:
    """Every argument of the rows pass with token dilation."""
    p = call.problem
    tiles, registers = tuning.ROWS[p.head_dim, p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    near, far = p.rates[0], p.rates[-1]
    near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
    return {
        "desc_a": (p.q, 64, 0), "desc_b": (call.grad_out, 64, 0),
        "desc_x": (p.k, near_box, near), "desc_y": (p.v, near_box, near),
        "desc_x_far": (p.k, far_box, far), "desc_y_far": (p.v, far_box, far),
        "desc_dq": (call.grads.q, 64, 0),
        "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.of_lse,
        "Offsets": p.rows.indptr, "Indices": p.rows.indices, "Schedule": work_order_of(p), "Counter": p.rows.indptr,
        **strides(call),
        "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len,
        "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "RATE": near, "FAR_RATE": far, "N_CLASSES": len(p.rates),
        "STAGES": tiles.stages, "SLOTS": tiles.slots, "HELD": tiles.held, "IS_CAUSAL": p.is_causal,
        "HAS_GRAD_LSE": call.has_grad_lse, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def dilated_columns_arguments(call: BackwardCall, stats: Tensor) -> dict[str, Any]:
    """Every argument of the columns pass with token dilation."""
    p, grads = call.problem, call.grads
    offsets = offsets_of(p)
    tiles, registers = tuning.COLUMNS[p.head_dim, p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
    joined = max(p.rates)
    kept = p.block_size // joined
    n_groups = offsets.columns.n_groups
    return {
        "desc_a": (p.k, kept, joined), "desc_b": (p.v, kept, joined),
        "desc_x": (p.q, tiles.tile, 0), "desc_y": (call.grad_out, tiles.tile, 0),
        "desc_dk": (grads.k, kept, joined), "desc_dv": (grads.v, kept, joined),
        "Stats": stats, "Schedule": work_order_of(p)[offsets.columns_at :], "Counter": p.rows.indptr,
        "n_groups": n_groups, "n_layout_groups": n_groups * p.layout_heads, "n_rows": p.n_rows,
        "num_kv_heads": p.num_kv_heads, "n_batch_kv_heads": p.batch * p.num_kv_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.first_row, "q_offset": p.q_offset, "softmax_scale": p.softmax_scale,
        "D": p.head_dim, "TILE": tiles.tile, "JOINED": joined, "RATE": p.rates[0], "FAR_RATE": p.rates[-1],
        "N_CLASSES": len(p.rates), "STAGES": tiles.stages, "SLOTS": tiles.slots, "HELD": tiles.held,
        "IS_CAUSAL": p.is_causal, "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip
