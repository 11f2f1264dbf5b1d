"""The single pass of the backward; no maths.

Its sums of dq take twice the memory of q; lse and delta take as much as in two passes. adding.py says how the sums are added to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launching.kept_kernel import KeptKernel
from ..problem import AttentionProblem
from . import tuning
from .adding import Adding, Limits, heads_in_turn, how_to_add, row_ranges
from .gluon_names import COMPILER_OPTIONS
from .kernels.backward_single_pass import single_pass_kernel
from .kernels.dq_sums import LINE
from .kernels.fixed_point import key_maxima_kernel
from .kernels.lse_delta import CHUNK
from .kernels.row_ranges import cuts_kernel
from .kernels.single_pass_dq import begin_kernel, finish_kernel
from .passes import BackwardCall, has_no_edge, in_order, offsets_of
from .prepared import work_order_of
from .wide import is_wide

CUT_LISTS = 64  # lists that a program cuts
CUTS = KeptKernel(cuts_kernel)
BEGIN, FINISH = KeptKernel(begin_kernel), KeptKernel(finish_kernel)
KEY_MAXIMA = KeptKernel(key_maxima_kernel)
HEAD_DIMS = " or ".join(map(str, tuning.SINGLE_PASS))


class PassMemory(NamedTuple):
    """What the kernels of a single pass share."""

    stats: Tensor
    """lse and delta, see kernels/lse_delta.py."""
    sums: Tensor
    """Of dq, float32, or int32 in fixed point."""
    scales: Tensor | None
    """In fixed point, of the queries (kernels/fixed_point.py)."""
    maxima: Tensor | None
    """In fixed point, of k and of v."""
    done: Tensor | None
    """In turns: how often those of a block of 128 were passed on, at its first chunk (kernels/turns.py)."""
    cuts: Tensor | None
    """int32 (columns of all heads, ranges + 1), where rows are cut into ranges (kernels/row_ranges.py)."""

    @property
    def n_ranges(self) -> int:
        """Into how many ranges rows are cut."""
        return 1 if self.cuts is None else self.cuts.shape[1] - 1


class SinglePass:
    """What is launched for a call that the single pass serves."""

    kernel = single_pass_kernel
    limits = Limits()

    def wants_same_bits(self) -> bool:
        """Whether torch asks all operations for the same bits in every run."""
        return torch.are_deterministic_algorithms_enabled()

    def choice(self, problem: AttentionProblem) -> Adding | str:
        """How the sums of a problem of blocks of 64 or 128 are added to, or why two passes serve it instead.

        Every backward asks, so the quickest questions come first.
        """
        p, head_dim = problem, problem.q.shape[3]
        if head_dim not in tuning.SINGLE_PASS or p.v.shape[3] != head_dim:
            return f"head_dim {head_dim} and {p.v_head_dim} of v are not both {HEAD_DIMS}"
        in_fixed_order = p.deterministic or self.wants_same_bits()
        adding = how_to_add(p, in_fixed_order, self.limits)
        if in_fixed_order and isinstance(adding, str):
            return adding
        if p.dilation is not None:
            return f"tokens are dilated with rates {p.rates}"
        if is_wide(p):
            return "there are positions, masks, biases or score terms"
        if (
            head_dim == 128
            and p.q.dtype == torch.float16
            and p.grid.block_size == 128
            and (p.is_causal or not has_no_edge(p))
        ):
            return "masks of float16 of head_dim 128 take too many registers"
        return adding

    def n_chunks(self, problem: AttentionProblem) -> int:
        """Chunks of queries of a head."""
        return problem.grid.n_rows * (problem.block_size // int(CHUNK.value))

    def memory(self, problem: AttentionProblem, adding: Adding, n_chunks: int | None = None) -> PassMemory:
        """The memory, not filled but for the maxima, which are 0; n_chunks: of queries, all by default."""
        p = problem
        n = (p.batch * p.num_heads * self.n_chunks(p) if n_chunks is None else n_chunks) * CHUNK.value
        floats: dict[str, Any] = {"dtype": torch.float32, "device": p.q.device}
        whole: dict[str, Any] = {"dtype": torch.int32, "device": p.q.device}
        of_sums, scales, maxima, done, cuts = floats, None, None, None, None
        if adding is Adding.TURNS:
            done = torch.empty(n // CHUNK.value, **whole)
        elif adding is Adding.FIXED_POINT:
            of_sums, scales = whole, torch.empty(n, **floats)
            maxima = torch.zeros(2 * p.batch * p.num_kv_heads, **whole)
        elif (n_ranges := row_ranges(p, self.limits)) > 1:
            cuts = torch.empty(p.layout_heads * p.grid.n_cols, n_ranges + 1, **whole)
        # lines as tokens of a tensor like those with a descriptor
        line = LINE.value
        sums = torch.empty(1, n * p.head_dim // line, 1, line, **of_sums)
        return PassMemory(torch.empty(2 * n, **floats), sums, scales, maxima, done, cuts)

    def n_tiles(self, problem: AttentionProblem, memory: PassMemory) -> int:
        """Work tiles of all heads."""
        p = problem
        return offsets_of(p).columns.n_groups * p.batch * p.num_kv_heads * memory.n_ranges

    def options(self) -> dict[str, Any]:
        """How the kernel is compiled."""
        launch = tuning.SINGLE_PASS_LAUNCH_REGISTERS
        return {"num_warps": 4, "maxnreg": launch, "enable_fp_fusion": True, **COMPILER_OPTIONS}

    def arguments(self, call: BackwardCall, memory: PassMemory) -> dict[str, Any]:
        """Every argument of the kernel."""
        p, offsets = call.problem, offsets_of(call.problem)
        tiles, n_groups = tuning.SINGLE_PASS[p.head_dim], offsets.columns.n_groups
        indices, turns = (p.cols.indices, None) if memory.done is None else turn_lists_of(p)
        return in_order(single_pass_kernel, {
            "desc_k": (p.k, 64, 0), "desc_v": (p.v, 64, 0), "desc_q": (p.q, 64, 0), "desc_grad_out": (call.grad_out, 64, 0),
            "desc_dk": (call.grads.k, 64, 0), "desc_dv": (call.grads.v, 64, 0),
            "desc_sums": (memory.sums, 2 * CHUNK.value, 0), "Stats": memory.stats,
            "Scales": memory.scales, "Turns": turns, "Done": memory.done, "Cuts": memory.cuts,
            "Offsets": p.cols.indptr, "Indices": indices,
            "WorkOrder": work_order_of(p)[offsets.columns_at :], "Counter": p.rows.indptr,
            "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.cols.indices.numel(), "n_groups": n_groups * memory.n_ranges,
            "n_lists": p.grid.n_cols, "n_rows": p.grid.n_rows, "num_heads": p.num_kv_heads,
            "n_batch_heads": p.batch * p.num_kv_heads, "heads_per_kv": p.num_heads // p.num_kv_heads,
            "heads_per_list": p.num_heads // p.layout_heads, "heads_beside": 1 if memory.done is None else heads_in_turn(p),
            "first_row": p.grid.first_row, "kv_len": p.kv_len, "softmax_scale": p.softmax_scale,
            "D": p.head_dim, "TILE": 64, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots,
            "DS_STAGES": tiles.ds_stages, "DQ_TILES": tiles.dq_tiles, "IS_CAUSAL": p.is_causal, "EVEN_KV": has_no_edge(p),
            "OPERANDS_IN_REGISTERS": tiles.operands_in_registers, "ONE_AT_A_TIME": tiles.one_at_a_time,
            "FIXED_POINT": memory.scales is not None,
            "CONSUMER_REGISTERS": tiles.consumer, "DQ_REGISTERS": tiles.dq, "HELPER_REGISTERS": tiles.helper,
        })  # fmt: skip

    def described(self, call: BackwardCall, memory: PassMemory) -> tuple[Tensor, ...]:
        """The tensors with a descriptor."""
        p, grads = call.problem, call.grads
        return p.k, p.v, p.q, call.grad_out, grads.k, grads.v, memory.sums

    def addresses(self, call: BackwardCall, memory: PassMemory) -> tuple[int | None, ...]:
        """The other pointers, but the tile counter."""
        p = call.problem
        work_order = work_order_of(p).data_ptr() + 4 * offsets_of(p).columns_at
        scales = None if memory.scales is None else memory.scales.data_ptr()
        indices, turns, done = p.cols.indices.data_ptr(), None, None
        if memory.done is not None:
            lists, done = turn_lists_of(p), memory.done.data_ptr()
            indices, turns = lists[0].data_ptr(), lists[1].data_ptr()
        cuts = None if memory.cuts is None else memory.cuts.data_ptr()
        return (
            memory.stats.data_ptr(),
            scales,
            turns,
            done,
            cuts,
            p.cols.indptr.data_ptr(),
            indices,
            work_order,
        )

    def begin(self, call: BackwardCall, memory: PassMemory) -> None:
        """Fill lse and delta, the scales and the cuts, and clear what is added to."""
        p, n = call.problem, self.n_chunks(call.problem)
        heads_per_kv = p.num_heads // p.num_kv_heads
        if memory.maxima is not None:
            KEY_MAXIMA.run(p.q.device, p.grid.n_cols * p.batch * p.num_kv_heads, (
                p.k, p.v, p.cols.indptr, memory.maxima, *p.k.stride()[:3], *p.v.stride()[:3], p.num_kv_heads, heads_per_kv,
                p.num_heads // p.layout_heads, p.grid.n_cols, p.kv_len, p.head_dim,
            ), num_warps=8)  # fmt: skip
        if memory.cuts is not None:
            n_lists, n_ranges = memory.cuts.shape[0], memory.n_ranges
            CUTS.run(p.q.device, -(-n_lists // CUT_LISTS), (
                p.cols.indptr, p.cols.indices, memory.cuts, n_lists, n_ranges, -(-p.grid.n_rows // n_ranges),
                p.grid.n_rows.bit_length(), CUT_LISTS,
            ))  # fmt: skip
            call.grads.k.zero_()
            call.grads.v.zero_()
        BEGIN.run(p.q.device, n * p.batch * p.num_heads, (
            call.out, call.grad_out, call.lse, call.grad_lse,
            memory.stats, memory.sums, memory.scales, memory.maxima, memory.done,
            *call.out.stride()[:3], *call.grad_out.stride()[:3], *call.grad_lse.stride(), int(call.has_grad_lse),
            n, p.num_heads, heads_per_kv, p.q_len, p.head_dim,
        ))  # fmt: skip

    def finish(self, call: BackwardCall, memory: PassMemory) -> None:
        """Make dq from its sums."""
        p, n, dq = call.problem, self.n_chunks(call.problem), call.grads.q
        FINISH.run(p.q.device, n * p.batch * p.num_heads, (
            memory.sums, memory.scales, dq, *dq.stride()[:3], n, p.num_heads, p.q_len, p.softmax_scale, p.head_dim,
        ))  # fmt: skip


def turn_lists_of(problem: AttentionProblem) -> Tensor:
    """(2, n_entries): the rows of every column, the last first, and the turns (turn_order.py)."""
    return work_order_of(problem)[offsets_of(problem).turns_at :].view(2, -1)


SINGLE_PASS = SinglePass()
