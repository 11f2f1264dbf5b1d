"""The single pass of the backward; no maths.

Its sums of dq take twice the memory of q, and of lse and delta as much as in the two passes. They are float32 for calls that do
not ask for the same bits every time; for others they are fixed-point numbers, where these fit and pay (fixed_point_sums.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...launching.kept_kernel import KeptKernel
from ..problem import AttentionProblem
from . import fixed_point_sums, tuning
from .gluon_names import COMPILER_OPTIONS
from .kernels.backward_single_pass import LINE, single_pass_kernel
from .kernels.fixed_point import key_maxima_kernel
from .kernels.lse_delta import CHUNK
from .kernels.single_pass_dq import begin_kernel, finish_kernel
from .passes import BackwardCall, has_no_edge, in_order, offsets_of
from .prepared import work_order_of
from .wide import is_wide

BEGIN, FINISH = KeptKernel(begin_kernel), KeptKernel(finish_kernel)
KEY_MAXIMA = KeptKernel(key_maxima_kernel)
HEAD_DIMS = " or ".join(map(str, tuning.SINGLE_PASS))
SAME_BITS = "two backwards must give the same bits, and"


class PassMemory(NamedTuple):
    """What the kernels of a single pass share: lse and delta of all queries, and the sums of dq.

    Where the sums are in fixed point, also their scales and the maxima of k and v (kernels/fixed_point.py).
    """

    stats: Tensor
    sums: Tensor
    scales: Tensor | None
    maxima: Tensor | None


class SinglePass:
    """What is launched for a call that the single pass serves."""

    kernel = single_pass_kernel

    def wants_same_bits(self) -> bool:
        """Whether torch asks all operations for the same bits in every run."""
        return torch.are_deterministic_algorithms_enabled()

    def in_fixed_point(self, problem: AttentionProblem) -> bool:
        """Whether the sums of a problem that the single pass serves are in fixed point."""
        return problem.deterministic or self.wants_same_bits()

    def why_not(self, problem: AttentionProblem) -> str | None:
        """Why two passes serve a problem of blocks of 64 or 128 instead; None if the single pass does.

        Every backward asks, so the quickest questions come first.
        """
        p, head_dim = problem, problem.q.shape[3]
        if p.grid.block_size != 128:
            return f"block_size {p.block_size} is not 128"
        if head_dim not in tuning.SINGLE_PASS or p.v.shape[3] != head_dim:
            return f"head_dim {head_dim} and {p.v_head_dim} of v are not both {HEAD_DIMS}"
        in_fixed_point = self.in_fixed_point(p)
        if in_fixed_point and head_dim not in fixed_point_sums.HEAD_DIMS:
            return f"{SAME_BITS} fixed-point sums are no faster"
        if p.dilation is not None:
            return f"tokens are dilated with rates {p.rates}"
        if is_wide(p):
            return "there are positions, masks, biases or score terms"
        if p.is_causal and head_dim == 128 and p.q.dtype == torch.float16:
            return "causal float16 of head_dim 128 takes too many registers"
        why_not = fixed_point_sums.why_not(p) if in_fixed_point else None
        return None if why_not is None else f"{SAME_BITS} {why_not}"

    def n_chunks(self, problem: AttentionProblem) -> int:
        """Chunks of queries of a head."""
        return problem.grid.n_rows * (problem.block_size // int(CHUNK.value))

    def memory(self, problem: AttentionProblem, n_chunks: int | None = None) -> PassMemory:
        """The memory, not filled but for the maxima, which are 0; n_chunks: of queries, all by default."""
        p = problem
        n = (p.batch * p.num_heads * self.n_chunks(p) if n_chunks is None else n_chunks) * CHUNK.value
        floats: dict[str, Any] = {"dtype": torch.float32, "device": p.q.device}
        whole: dict[str, Any] = {"dtype": torch.int32, "device": p.q.device}
        of_sums, scales, maxima = floats, None, None
        if self.in_fixed_point(p):
            of_sums, scales = whole, torch.empty(n, **floats)
            maxima = torch.zeros(2 * p.batch * p.num_kv_heads, **whole)
        # lines as tokens of a tensor like those with a descriptor
        line = LINE.value
        sums = torch.empty(1, n * p.head_dim // line, 1, line, **of_sums)
        return PassMemory(torch.empty(2 * n, **floats), sums, scales, maxima)

    def n_tiles(self, problem: AttentionProblem) -> int:
        """Work tiles of all heads."""
        p = problem
        return offsets_of(p).columns.n_groups * p.batch * p.num_kv_heads

    def options(self) -> dict[str, Any]:
        """How the kernel is compiled."""
        launch = tuning.SINGLE_PASS_LAUNCH_REGISTERS
        return {"num_warps": 4, "maxnreg": launch, "enable_fp_fusion": True, **COMPILER_OPTIONS}

    def arguments(self, call: BackwardCall, memory: PassMemory) -> dict[str, Any]:
        """Every argument of the kernel."""
        p, offsets = call.problem, offsets_of(call.problem)
        tiles, n_groups = tuning.SINGLE_PASS[p.head_dim], offsets.columns.n_groups
        return in_order(single_pass_kernel, {
            "desc_k": (p.k, 64, 0), "desc_v": (p.v, 64, 0), "desc_q": (p.q, 64, 0), "desc_grad_out": (call.grad_out, 64, 0),
            "desc_dk": (call.grads.k, 64, 0), "desc_dv": (call.grads.v, 64, 0),
            "desc_sums": (memory.sums, 2 * CHUNK.value, 0), "Stats": memory.stats, "Scales": memory.scales, "Offsets": p.cols.indptr, "Indices": p.cols.indices,
            "WorkOrder": work_order_of(p)[offsets.columns_at :], "Counter": p.rows.indptr,
            "n_layout_groups": n_groups * p.layout_heads, "n_entries": p.cols.indices.numel(), "n_groups": n_groups,
            "n_lists": p.grid.n_cols, "n_rows": p.grid.n_rows, "num_heads": p.num_kv_heads,
            "n_batch_heads": p.batch * p.num_kv_heads, "heads_per_kv": p.num_heads // p.num_kv_heads,
            "heads_per_list": p.num_heads // p.layout_heads, "first_row": p.grid.first_row, "kv_len": p.kv_len,
            "softmax_scale": p.softmax_scale,
            "D": p.head_dim, "TILE": 64, "BLOCK_SIZE": p.block_size, "STAGES": tiles.stages, "SLOTS": tiles.slots,
            "DS_STAGES": tiles.ds_stages, "IS_CAUSAL": p.is_causal, "EVEN_KV": has_no_edge(p),
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
        lists = p.cols.indptr.data_ptr(), p.cols.indices.data_ptr()
        return memory.stats.data_ptr(), scales, *lists, work_order

    def begin(self, call: BackwardCall, memory: PassMemory) -> None:
        """Fill lse and delta, and the scales, and clear the sums."""
        p, n = call.problem, self.n_chunks(call.problem)
        heads_per_kv = p.num_heads // p.num_kv_heads
        if memory.maxima is not None:
            KEY_MAXIMA.run(p.q.device, p.grid.n_cols * p.batch * p.num_kv_heads, (
                p.k, p.v, p.cols.indptr, memory.maxima, *p.k.stride()[:3], *p.v.stride()[:3], p.num_kv_heads, heads_per_kv,
                p.num_heads // p.layout_heads, p.grid.n_cols, p.kv_len, p.head_dim,
            ), num_warps=8)  # fmt: skip
        of_lse = (
            call.grad_lse.stride(0),
            call.grad_lse.stride(1),
            call.grad_lse.stride(2),
            int(call.has_grad_lse),
        )
        BEGIN.run(p.q.device, n * p.batch * p.num_heads, (
            call.out, call.grad_out, call.lse, call.grad_lse, *memory, *call.out.stride()[:3], *call.grad_out.stride()[:3],
            *of_lse, n, p.num_heads, heads_per_kv, p.q_len, p.head_dim,
        ))  # fmt: skip

    def finish(self, call: BackwardCall, memory: PassMemory) -> None:
        """Make dq from its sums."""
        p, n, dq = call.problem, self.n_chunks(call.problem), call.grads.q
        FINISH.run(p.q.device, n * p.batch * p.num_heads, (
            memory.sums, memory.scales, dq, *dq.stride()[:3], n, p.num_heads, p.q_len, p.softmax_scale, p.head_dim,
        ))  # fmt: skip


SINGLE_PASS = SinglePass()
