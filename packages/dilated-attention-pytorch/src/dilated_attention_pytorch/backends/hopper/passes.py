"""The passes of the Hopper backend: for every kernel its arguments and what a launch is given; no maths.

Arguments are given by name, tensor descriptors as (tensor, rows, rate). Of the tensors that every launch is given anew, such
as the tile counter, `arguments` holds one of the right type.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import tuning
from .gluon_names import COMPILER_OPTIONS, NEW_PTXAS
from .kernels.backward import backward_kernel
from .kernels.backward_dilated_dkdv import dilated_dkdv_kernel
from .kernels.backward_dilated_dq import dilated_dq_kernel
from .kernels.forward import forward_kernel
from .kernels.lse_delta import CHUNK
from .launcher import pointers
from .prepared import work_order_of
from .wide import (
    chunks,
    column_groups,
    has_positions,
    has_positions_in_forward,
    is_wide,
    list_tensors,
    row_groups,
    row_strides,
    wide_arguments,
    wide_constants,
)
from .work_order import WorkOrder

NO_TENSORS: dict[str, Tensor] = {}  # never changed
cached_offsets = functools.lru_cache(maxsize=256)(WorkOrder.of)  # of which a backward asks several times


def offsets_of(problem: AttentionProblem) -> WorkOrder:
    """Where the parts of the work order are."""
    p, grid = problem, problem.grid
    n_heads = p.layout_batch * p.layout_heads
    return cached_offsets(grid.n_rows, grid.n_cols, n_heads, p.rows.indices.numel(), p.block_size, p.dilation)


def in_order(kernel: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel in its order; those given that it does not take are left out."""
    return {name: given[name] for name in kernel.arg_names}


def extra_pointers(kernel: Any) -> tuple[str, ...]:
    """The pointers that a kernel takes behind the tile counter: None in a plain call."""
    names = pointers(kernel.arg_names)
    return tuple(names[names.index("Counter") + 1 :])


def kernel_dim(problem: AttentionProblem) -> int:
    """The head_dim of the kernels that holds those of q, k and v: the tensor memory accelerator fills it up with zeros."""
    return tuning.kernel_dim(max(problem.head_dim, problem.v_head_dim))


def compile_options(registers: tuning.Registers) -> dict[str, Any]:
    """How a warp-specialised kernel is compiled; fused multiply-adds are no longer the default in Triton 3.10."""
    return {"num_warps": 4, "maxnreg": registers.launch, "enable_fp_fusion": True, **COMPILER_OPTIONS}


def pairs_heads(problem: AttentionProblem) -> bool:
    """Whether tiles are a row of two heads that share k, v and lists, in place of two rows of one head."""
    p = problem
    return (
        p.block_size == 64
        and p.kv_len >= tuning.PAIRED_FROM
        and p.dilation is None
        and p.num_heads // p.num_kv_heads % 2 == 0
        and p.num_heads // p.layout_heads % 2 == 0
        and p.rows.indices.numel() > 0
        and not has_positions_in_forward(p)
    )


def forward_tiles(problem: AttentionProblem) -> tuning.ForwardTiles:
    """The tiles of the forward; what changes scores is looked up for one block at a time."""
    p, dim = problem, kernel_dim(problem)
    if tuning.kernel_dim(p.v_head_dim) <= 128 < dim:
        return tuning.FORWARD_OF_NARROW_VALUES[dim, p.block_size]
    if dim in tuning.FORWARD_OF_PAIRS and not is_wide(p) and pairs_heads(p):
        return tuning.FORWARD_OF_PAIRS[dim]
    key = dim, p.block_size
    return tuning.FORWARD_OF_WIDE.get(key, tuning.FORWARD[key]) if is_wide(p) else tuning.FORWARD[key]


def order_of_rows(problem: AttentionProblem) -> Tensor:
    """The part of the work order that the forward reads."""
    order = work_order_of(problem)
    return order[offsets_of(problem).rows.singles :] if pairs_heads(problem) else order


def in_pairs(problem: AttentionProblem, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the forward; where it pairs heads, those of pairs of heads and of single rows."""
    if not pairs_heads(problem):
        return {**arguments, "HEADS_PAIRED": False}
    n_rows = problem.grid.n_rows
    counts = ("num_heads", "n_batch_heads", "heads_per_kv", "heads_per_list")
    halves = {name: arguments[name] // 2 for name in counts}
    groups = {"n_groups": n_rows, "n_layout_groups": n_rows * problem.layout_heads}
    return {**arguments, **halves, **groups, "HEADS_PAIRED": True}


def has_no_edge(problem: AttentionProblem) -> bool:
    """Whether no block has keys beyond the end, or a mask is applied to every edge anyway: not a kernel for each."""
    p = problem
    return p.is_causal or p.kv_len == p.grid.n_cols * p.block_size or has_positions(p)


# ---- forward


class ForwardPass:
    """out and lse of a problem."""

    kernel = forward_kernel

    @staticmethod
    def programs(problem: AttentionProblem) -> int:
        """How many share a multiprocessor."""
        return forward_tiles(problem).programs

    def options(self, problem: AttentionProblem) -> dict[str, Any]:
        """How the kernel is compiled."""
        return compile_options(tuning.FORWARD_REGISTERS[self.programs(problem)])

    @staticmethod
    def n_tiles(problem: AttentionProblem) -> int:
        """Work tiles of all heads."""
        if has_positions_in_forward(problem):
            return row_groups(problem) * problem.num_heads
        if pairs_heads(problem):
            return problem.grid.n_rows * problem.batch * problem.num_heads // 2
        return offsets_of(problem).rows.n_groups * problem.batch * problem.num_heads

    @staticmethod
    def extra_tensors(
        problem: AttentionProblem, out: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The pointers of a wide call; `tensors` are those that all passes have."""
        of_pass = {"OutRows": out} if has_positions_in_forward(problem) else {}
        return {**tensors, **list_tensors(problem, by_rows=True), **of_pass}

    def arguments(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, tensors: dict[str, Tensor] = NO_TENSORS
    ) -> dict[str, Any]:
        """Every argument of the kernel; `tensors`: the pointers of a wide call."""
        p = problem
        tiles = forward_tiles(p)
        near, far = p.rates[0], p.rates[-1]
        near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
        registers = tuning.FORWARD_REGISTERS[tiles.programs]
        n_groups = offsets_of(p).rows.n_groups
        return in_order(self.kernel, in_pairs(p, {
            **wide_arguments(p, tensors), **row_strides("o", out, has_positions_in_forward(p)),
            "v_head_dim": p.v_head_dim if has_positions_in_forward(p) else None, "desc_q": (p.q, 64, 0),
            "desc_k": (p.k, near_box, near), "desc_v": (p.v, near_box, near),
            "desc_k_far": (p.k, far_box, far), "desc_v_far": (p.v, far_box, far),
            "desc_out": (out, 64, 0),
            "Lse": lse, "Offsets": p.rows.indptr, "Indices": p.rows.indices, "WorkOrder": order_of_rows(p),
            "Counter": p.rows.indptr,
            "n_layout_groups": n_groups * p.layout_batch * p.layout_heads, "n_entries": p.rows.indices.numel(),
            "n_groups": n_groups, "n_rows": p.grid.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads,
            "first_row": p.grid.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "heads_per_kv": p.num_heads // p.num_kv_heads,
            "heads_per_list": p.num_heads // p.layout_heads, "softmax_scale": p.softmax_scale,
            "D": kernel_dim(p), "BLOCK_N": tiles.tile, "BLOCK_SIZE": p.block_size, "RATE": near, "FAR_RATE": far,
            "N_CLASSES": len(p.rates), "K_STAGES": tiles.k_stages, "V_STAGES": tiles.v_stages, "SLOTS": tiles.slots,
            "IS_CAUSAL": p.is_causal, "EVEN_KV": has_no_edge(p) or has_positions_in_forward(p), "OVERLAP": tiles.overlap, "UNROLL": tiles.unroll,
            **wide_constants(p), "QK_DIM": tuning.used_columns(p.head_dim, kernel_dim(p)), "DV": tuning.value_columns(p.v_head_dim, kernel_dim(p)),
            "SEQUENCES": has_positions_in_forward(p),
            "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
        }))  # fmt: skip

    @staticmethod
    def lists(problem: AttentionProblem) -> tuple[int, int, int]:
        """The addresses that depend on the layout alone; in a launch they stand between lse and the tile counter."""
        p = problem
        return p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), order_of_rows(p).data_ptr()


FORWARD = ForwardPass()


# ---- backward


class BackwardCall(NamedTuple):
    """A backward with everything as the kernels read it, its results, and the key under which its launches are kept."""

    problem: AttentionProblem
    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor  # lse where there is none: the kernel then does not read it
    has_grad_lse: bool
    grads: Gradients
    key: Hashable
    tensors: dict[str, Tensor] = NO_TENSORS  # pointers of a wide call that all passes have


Saved = tuple[int, int, int, int]  # addresses of stats, which the passes share, and of out, lse and grad_lse
Tensors = tuple[
    tuple[Tensor, ...], tuple[int, ...]
]  # those with a descriptor, and the addresses but the counter's


class BackwardPass(ABC):
    """One kernel of a backward."""

    kernel: Any

    @abstractmethod
    def arguments(self, call: BackwardCall, stats: Tensor) -> dict[str, Any]:
        """Every argument of the kernel."""

    @abstractmethod
    def extra_tensors(self, call: BackwardCall) -> dict[str, Tensor]:
        """The pointers of a wide call."""

    @abstractmethod
    def n_tiles(self, problem: AttentionProblem) -> int:
        """Work tiles of all heads."""

    @abstractmethod
    def work_order_at(self, problem: AttentionProblem) -> int:
        """Where in the work order the part of the pass begins, in numbers."""

    @abstractmethod
    def tensors(self, call: BackwardCall, saved: Saved, work_order: int) -> Tensors:
        """What a launch is given, in the order of the arguments; work_order: the address of the part of the pass."""

    def options(self, problem: AttentionProblem) -> dict[str, Any]:
        """How the kernel is compiled."""
        return compile_options(tuning.BACKWARD_REGISTERS[NEW_PTXAS])


def saved_strides(call: BackwardCall) -> dict[str, int]:
    """The strides of what a dq pass reads without a descriptor, and whether lse has a gradient."""
    return {
        **{f"stride_o{axis}": call.out.stride(i) for i, axis in enumerate("bsh")},
        **{f"stride_l{axis}": call.grad_lse.stride(i) for i, axis in enumerate("bhs")},
        "has_grad_lse": int(call.has_grad_lse),
    }


def common_arguments(
    call: BackwardCall,
    tensors: dict[str, Tensor],
    tiles: tuning.BackwardTiles,
    num_heads: int,
    *,
    dkdv: bool,
    sums: str,
) -> dict[str, Any]:
    """What the two passes without token dilation are given alike, but for the descriptors; tensors: of a wide call."""
    p = call.problem
    registers, offsets = registers_of(tiles), offsets_of(p)
    lists, n_lists, n_groups, start = p.rows, p.grid.n_rows, offsets.rows.n_groups, 0
    if dkdv:
        lists, n_lists = p.cols, p.grid.n_cols
        n_groups, start = offsets.columns.n_groups, offsets.columns_at
    return {
        **wide_arguments(p, tensors), "Out": call.out, "Lse": call.lse, "GradLse": call.grad_lse,
        "Offsets": lists.indptr, "Indices": lists.indices, "WorkOrder": work_order_of(p)[start:], "Counter": p.rows.indptr,
        **saved_strides(call),
        "n_layout_groups": n_groups * p.layout_batch * p.layout_heads, "n_entries": lists.indices.numel(),
        "n_groups": n_groups, "n_lists": n_lists, "n_rows": p.grid.n_rows, "num_heads": num_heads, "n_batch_heads": p.batch * num_heads,
        "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
        "first_row": p.grid.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len,
        "v_dim": p.v_head_dim, "softmax_scale": p.softmax_scale, **wide_constants(p),
        "D": backward_dims(p)[0], "DV": backward_dims(p)[1], "TILE": tiles.tile, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots,
        "OPERANDS_IN_REGISTERS": tiles.operands_in_registers, "LATE_LSE": tiles.late_lse,
        "OVERLAP_STEPS": tiles.overlap_steps, "ONE_AT_A_TIME": tiles.one_at_a_time, "DKDV": dkdv, "SUMS": sums, "IS_CAUSAL": p.is_causal,
        "EVEN_KV": dkdv or has_no_edge(p),
        "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
    }  # fmt: skip


def backward_dims(problem: AttentionProblem) -> tuple[int, int]:
    """The columns of the tiles of q and k and of those of v: alike, but where they are 192 and at most 128."""
    p, dim = problem, kernel_dim(problem)
    if dim != 192:
        return dim, dim
    return max(128, tuning.kernel_dim(p.head_dim)), max(128, tuning.kernel_dim(p.v_head_dim))


def dq_tiles(problem: AttentionProblem) -> tuning.BackwardTiles:
    """The tiles of the dq pass."""
    dim, v_dim = backward_dims(problem)
    return tuning.DQ[dim, problem.block_size] if dim == v_dim else tuning.NARROW_DQ


def registers_of(tiles: tuning.BackwardTiles) -> tuning.Registers:
    """The registers of a pass."""
    return tuning.ONE_AT_A_TIME_REGISTERS if tiles.one_at_a_time else tuning.BACKWARD_REGISTERS[NEW_PTXAS]


def dkdv_tiles(problem: AttentionProblem, sums: str) -> tuning.BackwardTiles:
    """The tiles of the dkdv pass, or of the passes for dk and for dv."""
    dim, v_dim = backward_dims(problem)
    if dim == v_dim:
        return tuning.DKDV[dim, problem.block_size]
    return tuning.NARROW_DKDV if sums == "both" else tuning.NARROW_ONE_SUM


def slot_parts(problem: AttentionProblem) -> int:
    """Sums that the dq pass leaves of a block: a warp has 16 queries, and a step some of the keys."""
    p = problem
    return p.block_size // 16 * (p.block_size // dq_tiles(p).tile)


class DqPass(BackwardPass):
    """dq by rows; leaves lse and delta to the dkdv pass."""

    kernel = backward_kernel

    def arguments(self, call: BackwardCall, stats: Tensor) -> dict[str, Any]:
        p, dq = call.problem, call.grads.q
        tiles, tensors = dq_tiles(p), self.extra_tensors(call)
        return in_order(self.kernel, {
            "desc_kept_qk": (p.q, 64, 0), "desc_kept_gv": (call.grad_out, 64, 0),
            "desc_qk": (p.k, tiles.tile, 0), "desc_gv": (p.v, tiles.tile, 0),
            "desc_grad_qk": (dq, 64, 0), "desc_grad_v": (dq, 64, 0),
            "Stats": stats, **common_arguments(call, tensors, tiles, p.num_heads, dkdv=False, sums="qk"),
            **row_strides("g", dq, has_positions(p)),
        })  # fmt: skip

    def extra_tensors(self, call: BackwardCall) -> dict[str, Tensor]:
        of_pass = {"GradQk": call.grads.q} if has_positions(call.problem) else {}
        return {**call.tensors, **list_tensors(call.problem, by_rows=True), **of_pass}

    def n_tiles(self, problem: AttentionProblem) -> int:
        if has_positions(problem):
            return row_groups(problem) * problem.num_heads
        return offsets_of(problem).rows.n_groups * problem.batch * problem.num_heads

    def work_order_at(self, problem: AttentionProblem) -> int:
        return 0

    def tensors(self, call: BackwardCall, saved: Saved, work_order: int) -> Tensors:
        p, dq = call.problem, call.grads.q
        lists = p.rows.indptr.data_ptr(), p.rows.indices.data_ptr()
        return (p.q, call.grad_out, p.k, p.v, dq, dq), (*saved, *lists, work_order)


class DkdvPass(BackwardPass):
    """dk and dv by columns, with the lse and delta of the dq pass; or one of them, where both take too many registers."""

    kernel = backward_kernel

    def __init__(self, sums: str = "both") -> None:
        """sums: "both", "qk" (dk) or "v" (dv)."""
        self.sums = sums

    def arguments(self, call: BackwardCall, stats: Tensor) -> dict[str, Any]:
        p, grads = call.problem, call.grads
        tiles, tensors = dkdv_tiles(p, self.sums), self.extra_tensors(call)
        return in_order(self.kernel, {
            "desc_kept_qk": (p.k, 64, 0), "desc_kept_gv": (p.v, 64, 0),
            "desc_qk": (p.q, tiles.tile, 0), "desc_gv": (call.grad_out, tiles.tile, 0),
            "desc_grad_qk": (grads.k, 64, 0), "desc_grad_v": (grads.v, 64, 0),
            "Stats": stats, **common_arguments(call, tensors, tiles, p.num_kv_heads, dkdv=True, sums=self.sums),
            **row_strides("g", grads.k, has_positions(p)), **row_strides("v", grads.v, has_positions(p)),
        })  # fmt: skip

    def extra_tensors(self, call: BackwardCall) -> dict[str, Tensor]:
        of_pass = {"GradQk": call.grads.k, "GradV": call.grads.v} if has_positions(call.problem) else {}
        of_call = {name: x for name, x in call.tensors.items() if name != "Slots"}
        return {**of_call, **list_tensors(call.problem, by_rows=False), **of_pass}

    def n_tiles(self, problem: AttentionProblem) -> int:
        if has_positions(problem):
            return column_groups(problem) * problem.num_kv_heads
        return offsets_of(problem).columns.n_groups * problem.batch * problem.num_kv_heads

    def work_order_at(self, problem: AttentionProblem) -> int:
        return offsets_of(problem).columns_at

    def tensors(self, call: BackwardCall, saved: Saved, work_order: int) -> Tensors:
        p, grads = call.problem, call.grads
        lists = p.cols.indptr.data_ptr(), p.cols.indices.data_ptr()
        described = (p.k, p.v, p.q, call.grad_out, grads.k, grads.v)
        return described, (*saved, *lists, work_order)


class DilatedDqPass(DqPass):
    """dq by rows with token dilation; leaves lse and delta to the dkdv pass."""

    kernel = dilated_dq_kernel

    def arguments(self, call: BackwardCall, stats: Tensor) -> dict[str, Any]:
        p = call.problem
        tiles, registers = tuning.DQ[kernel_dim(p), p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
        near, far = p.rates[0], p.rates[-1]
        near_box, far_box = (min(p.block_size // rate, tiles.tile) for rate in (near, far))
        return {
            "desc_q": (p.q, 64, 0), "desc_grad_out": (call.grad_out, 64, 0),
            "desc_k": (p.k, near_box, near), "desc_v": (p.v, near_box, near),
            "desc_k_far": (p.k, far_box, far), "desc_v_far": (p.v, far_box, far),
            "desc_dq": (call.grads.q, 64, 0),
            "Stats": stats, "Out": call.out, "Lse": call.lse, "GradLse": call.grad_lse,
            "Offsets": p.rows.indptr, "Indices": p.rows.indices, "WorkOrder": work_order_of(p), "Counter": p.rows.indptr,
            **saved_strides(call),
            "n_rows": p.n_rows, "num_heads": p.num_heads, "n_batch_heads": p.batch * p.num_heads,
            "heads_per_kv": p.num_heads // p.num_kv_heads, "heads_per_list": p.num_heads // p.layout_heads,
            "first_row": p.first_row, "q_offset": p.q_offset, "q_len": p.q_len, "kv_len": p.kv_len, "v_dim": p.v_head_dim,
            "softmax_scale": p.softmax_scale,
            "D": kernel_dim(p), "TILE": tiles.tile, "RATE": near, "FAR_RATE": far, "N_CLASSES": len(p.rates),
            "STAGES": tiles.stages, "SLOTS": tiles.slots, "OPERANDS_IN_REGISTERS": tiles.operands_in_registers,
            "IS_CAUSAL": p.is_causal,
            "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
        }  # fmt: skip

    def tensors(self, call: BackwardCall, saved: Saved, work_order: int) -> Tensors:
        p = call.problem
        lists = p.rows.indptr.data_ptr(), p.rows.indices.data_ptr()
        described = (p.q, call.grad_out, p.k, p.v, p.k, p.v, call.grads.q)
        return described, (*saved, *lists, work_order)


class DilatedDkdvPass(DkdvPass):
    """dk and dv by column groups with token dilation, with the lse and delta of the dq pass."""

    kernel = dilated_dkdv_kernel

    def arguments(self, call: BackwardCall, stats: Tensor) -> dict[str, Any]:
        p, grads = call.problem, call.grads
        offsets = offsets_of(p)
        tiles, registers = tuning.DKDV[kernel_dim(p), p.block_size], tuning.BACKWARD_REGISTERS[NEW_PTXAS]
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
            "D": kernel_dim(p), "TILE": tiles.tile, "GROUP_SIZE": group_size, "RATE": p.rates[0], "FAR_RATE": p.rates[-1],
            "N_CLASSES": len(p.rates), "STAGES": tiles.stages, "SLOTS": tiles.slots,
            "OPERANDS_IN_REGISTERS": tiles.operands_in_registers, "IS_CAUSAL": p.is_causal,
            "CONSUMER_REGISTERS": registers.consumer, "HELPER_REGISTERS": registers.helper,
        }  # fmt: skip

    def n_tiles(self, problem: AttentionProblem) -> int:
        return max(problem.rates) * super().n_tiles(problem)

    def tensors(self, call: BackwardCall, saved: Saved, work_order: int) -> Tensors:
        p, grads = call.problem, call.grads
        described = (p.k, p.v, p.q, call.grad_out, grads.k, grads.v)
        stats, *_ = saved
        return described, (stats, work_order)


class Backward(NamedTuple):
    """A way to compute gradients: passes, launched one after the other, with memory that they share."""

    name: str
    rejects: Callable[[AttentionProblem], str | None]  # why it does not serve a problem, or None
    passes: tuple[BackwardPass, ...]
    n_floats: Callable[[AttentionProblem], int]  # float32 numbers of that memory: stats


def wants_no_dilation(problem: AttentionProblem) -> str | None:
    if problem.dilation is not None:
        return f"tokens are dilated with rates {problem.rates}"
    if kernel_dim(problem) > LARGEST_IN_TWO_PASSES:
        return f"the sums of dk and dv of head_dim {kernel_dim(problem)} take too many registers"
    return None


def wants_narrow_values(problem: AttentionProblem) -> str | None:
    dim, v_dim = backward_dims(problem)
    if problem.dilation is not None:
        return f"tokens are dilated with rates {problem.rates}"
    if dim == v_dim:
        return f"head_dim {problem.head_dim} and v head_dim {problem.v_head_dim} have tiles of the same size"
    if is_wide(problem):
        return "with more than products in the scores, dk and dv take too many registers"
    return None


def wants_one_sum_at_a_time(problem: AttentionProblem) -> str | None:
    if problem.dilation is not None:
        return f"tokens are dilated with rates {problem.rates}"
    if kernel_dim(problem) <= LARGEST_IN_TWO_PASSES:
        return f"head_dim {kernel_dim(problem)} needs no pass of its own for dv"
    return None


def wants_dilation(problem: AttentionProblem) -> str | None:
    return "tokens are not dilated" if problem.dilation is None else None


def stats_floats(problem: AttentionProblem) -> int:
    """lse and delta of every query."""
    return 2 * int(CHUNK.value) * chunks(problem)


LARGEST_IN_TWO_PASSES = 128  # head_dim: dk and dv are then 128 registers
DQ, DKDV, DK, DV = DqPass(), DkdvPass(), DkdvPass("qk"), DkdvPass("v")
DILATED_DQ, DILATED_DKDV = DilatedDqPass(), DilatedDkdvPass()
# The first that does not refuse a problem serves it.
BACKWARDS = [
    Backward("two passes", wants_no_dilation, (DQ, DKDV), stats_floats),
    Backward("two passes of narrow tiles", wants_narrow_values, (DQ, DKDV), stats_floats),
    Backward("three passes", wants_one_sum_at_a_time, (DQ, DK, DV), stats_floats),
    Backward("two passes with token dilation", wants_dilation, (DILATED_DQ, DILATED_DKDV), stats_floats),
]


def backward_of(problem: AttentionProblem) -> Backward:
    """The backward that serves a problem."""
    reasons = []
    for backward in BACKWARDS:
        why_not = backward.rejects(problem)
        if why_not is None:
            return backward
        reasons.append(f"{backward.name}: {why_not}")
    raise NotImplementedError(f"no backward of backend 'hopper' serves the call ({'; '.join(reasons)})")
