"""Grids and arguments of the portable kernels; no maths."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...launching.kept_kernel import KeptKernel
from ..dropout import keep_scale, keep_threshold
from ..gap_kernel import clear_gaps_kernel
from ..gaps import clearing
from ..problem import AttentionProblem, Gradients, beyond_plain_batch
from . import tuning
from .kernels.backward import delta_kernel, dkdv_kernel, dq_kernel
from .kernels.forward import forward_kernel
from .kernels.parts import AttnBias, Masks, Positions
from .masked_lists import MaskedLists, masked_lists

# The interpreter has no architecture; results do not depend on this one.
INTERPRETER_CAPABILITY = (8, 0)
INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
DELTA_BLOCK = 64
PLAIN = dict.fromkeys(Positions._fields)  # what a plain batch has instead of positions


# of every call, by the kernel
KEPT = {
    kernel: KeptKernel(kernel)
    for kernel in (forward_kernel, delta_kernel, dq_kernel, dkdv_kernel, clear_gaps_kernel)
}


class Launch(NamedTuple):
    """A kernel call, ready to run or to compile."""

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        # fused multiply-adds are no longer the default in Triton 3.10, of which 3.9 warns
        options, kept = {**self.options, "enable_fp_fusion": True}, KEPT.get(self.kernel)
        if kept is None:
            if self.grid[0] > 0:
                self.kernel[self.grid](**self.arguments, **options)
            return
        given, device = self.arguments, self.arguments[kept.names[0]].device
        kept.run(device, self.grid[0], [given[name] for name in kept.names], **options)


def strides(tensor: Tensor, suffix: str, axes: str) -> dict[str, int]:
    return dict(zip(stride_names(suffix, axes), tensor.stride(), strict=True))


def unit_of(problem: AttentionProblem) -> int:
    """In what strides are counted: pieces of 16 bytes if heads consist of them, else elements.

    So kernels read whole pieces, and are not compiled anew for other strides.
    """
    unit = 16 // problem.q.element_size()
    return 1 if problem.head_dim % unit or problem.v_head_dim % unit else unit


def is_readable(x: Tensor, unit: int) -> bool:
    """Whether x, (batch, tokens, heads, dim), begins at 16 bytes, and every head lies in one piece and begins at a unit."""
    sb, ss, sh, sd = x.stride()
    if sd != 1 or x.data_ptr() % 16:
        return False
    return not (sb | ss | sh) % unit or not any(
        step % unit for step, size in zip((sb, ss, sh), x.shape, strict=False) if size > 1
    )


def readable(x: Tensor, unit: int) -> Tensor:
    """The tensor, or a contiguous copy of one that the kernels cannot read."""
    return x if is_readable(x, unit) else x.clone(memory_format=torch.contiguous_format)


def with_readable_inputs(problem: AttentionProblem) -> AttentionProblem:
    """The problem with q, k and v as the kernels read them."""
    p, unit = problem, unit_of(problem)
    if is_readable(p.q, unit) and is_readable(p.k, unit) and is_readable(p.v, unit):
        return p
    return replace(p, q=readable(p.q, unit), k=readable(p.k, unit), v=readable(p.v, unit))


def token_strides(tensor: Tensor, suffix: str, unit: int) -> dict[str, int]:
    """The strides of batch, tokens and heads in units."""
    sb, ss, sh, _ = tensor.stride()
    batch, tokens, heads = stride_names(suffix, "bsh")
    return {batch: sb // unit, tokens: ss // unit, heads: sh // unit}


@lru_cache(maxsize=64)
def stride_names(suffix: str, axes: str) -> tuple[str, ...]:
    """The arguments with the strides of a tensor."""
    return tuple(f"stride_{suffix}{axis}" for axis in axes)


def capability_of(problem: AttentionProblem) -> tuple[int, int]:
    device = problem.q.device
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETER_CAPABILITY


def padded_dim(dim: int) -> int:
    """The power of two, at least 16, that holds a head_dim."""
    return max(16, 1 << (dim - 1).bit_length())


def positions_of(problem: AttentionProblem) -> Positions | None:
    """Where the tokens of a call are; None for a plain batch without masks inside blocks, which needs no more than its lengths."""
    p, sequences, grid = problem, problem.sequences, problem.grid
    if p.block_masks is None and (is_square(p) or beyond_plain_batch(p) is None):
        return None
    n_rows, n_cols = p.n_rows, p.n_cols
    if sequences is not None:  # the first token may be anywhere in its block
        max_q_len, max_kv_len = p.q_len, p.kv_len + p.block_size - 1
        if sequences.is_packed:
            max_q_len, max_kv_len = min(sequences.max_q_len, p.q_len), min(sequences.max_kv_len, p.kv_len)
        n_rows = -(-(max_q_len + p.block_size - 1) // p.block_size) if max_q_len > 0 else 0
        n_cols = -(-max_kv_len // p.block_size) if p.kv_len > 0 else 0
    return Positions(
        n_rows, n_cols, p.q_len, p.kv_len, p.q_offset, grid.first_row, grid.n_rows, grid.n_cols,
        p.layout_heads if p.layout_batch > 1 else 0,
    )  # fmt: skip


def is_square(problem: AttentionProblem) -> bool:
    """Whether queries and keys are those of the layout, as they mostly are: found in a third of the time of all cases."""
    p, grid, q_len = problem, problem.grid, problem.q.shape[1]
    return (
        p.sequences is None
        and p.layout_batch == 1
        and p.q_offset == 0 == grid.q_offset
        and grid.q_len == q_len == grid.kv_len == p.k.shape[1]
    )


def n_sequences(problem: AttentionProblem) -> int:
    """The number of sequences of a call."""
    return problem.batch if problem.sequences is None else problem.sequences.table.shape[0]


def broadcast_strides(tensor: Tensor) -> list[int]:
    """The strides of a tensor, 0 where it has one element."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def common_arguments(problem: AttentionProblem, positions: Positions | None) -> dict[str, Any]:
    """Arguments that the forward, dq and dkdv kernels share."""
    p = problem
    bias, padding, sequences, q, k, v = p.block_bias, p.key_padding_mask, p.sequences, p.q, p.k, p.v
    _, q_len, num_heads, head_dim = q.shape
    _, kv_len, num_kv_heads, v_head_dim = v.shape
    is_plain = positions is None
    bias_strides = [0, 0, 0] if bias is None else [*broadcast_strides(bias)[:2], bias.stride(2)]
    padding_strides = (0, 0) if padding is None else padding.stride()
    kv_lengths = p.kv_lengths if is_plain and sequences is not None else None
    rates, unit = p.rates, unit_of(p)
    # the dummies are never read: the flags below are off
    return {
        "Q": q, "K": k, "V": v,
        "Bias": q if bias is None else bias,
        "KvLengths": q if kv_lengths is None else kv_lengths,
        "Padding": q if padding is None else padding.view(torch.int8),
        "Seed": q if p.seed is None else p.seed,
        **token_strides(q, "q", unit), **token_strides(k, "k", unit), **token_strides(v, "v", unit),
        "stride_bb": bias_strides[0], "stride_bh": bias_strides[1], "stride_be": bias_strides[2],
        "stride_pb": padding_strides[0], "stride_ps": padding_strides[1],
        "q_len": q_len if is_plain else None, "kv_len": kv_len if is_plain else None,
        "q_offset": p.q_offset if is_plain else None, "first_row": p.first_row if is_plain else None,
        "num_heads": num_heads, "softmax_scale": p.softmax_scale,
        "threshold": keep_threshold(p.dropout_p), "keep_scale": keep_scale(p.dropout_p),
        "Table": None if is_plain or sequences is None else sequences.table,
        **(PLAIN if positions is None else positions._asdict()), "masks": None,
        "softcap": p.softcap or None, "Slopes": p.alibi_slopes,
        "attn_bias": None if p.attn_bias is None else AttnBias(p.attn_bias, *broadcast_strides(p.attn_bias)),
        "group": num_heads // num_kv_heads, "heads_per_list": num_heads // p.layout_heads,
        "HEAD_DIM": head_dim, "V_HEAD_DIM": v_head_dim,
        "BLOCK_D": padded_dim(head_dim), "BLOCK_DV": padded_dim(v_head_dim), "BLOCK_SIZE": p.grid.block_size,
        "N_CLASSES": len(rates), "RATES_LOG2": rates_log2(rates),
        "IS_CAUSAL": p.is_causal, "HAS_BIAS": bias is not None, "HAS_KV_LENGTHS": kv_lengths is not None,
        "HAS_PADDING": padding is not None, "DROPOUT": p.dropout_p > 0.0,
        "PRECISION": "ieee",  # of float32 products; TF32 would lose 13 bits of them
        "PACKED": sequences is not None and sequences.is_packed,
        "EXACT_TANH": INTERPRETED or q.dtype == torch.float32, "UNIT": unit,
    }  # fmt: skip


@lru_cache(maxsize=64)
def rates_log2(rates: tuple[int, ...]) -> int:
    """The logarithms of the rates, four bits each."""
    return sum((rate.bit_length() - 1) << (4 * i) for i, rate in enumerate(rates))


def list_arguments(problem: AttentionProblem, by_rows: bool) -> dict[str, Any]:
    """The lists of the rows or of the columns."""
    p = problem
    if p.block_masks is None:
        lists = p.rows if by_rows else p.cols
        return {"Offsets": lists.indptr, "Indices": lists.indices, "Entries": lists.block_ids}
    if p.prepared:
        lists_of = MaskedLists(*(p.prepared[:5] if by_rows else p.prepared[5:]))
    else:
        lists_of = masked_lists(p.rows if by_rows else p.cols, p.block_masks)
    return {
        "Offsets": lists_of.indptr, "Indices": lists_of.indices, "Entries": lists_of.block_ids,
        "masks": Masks(lists_of.mask_ids, lists_of.splits, p.block_masks.table),
    }  # fmt: skip


def has_edge(problem: AttentionProblem, positions: Positions | None) -> bool:
    """Whether some query may see only a part of an active block."""
    p = problem
    return (
        p.is_causal
        or positions is not None
        or p.kv_lengths is not None
        or p.key_padding_mask is not None
        or p.kv_len % p.block_size != 0
    )


def row_programs(problem: AttentionProblem, positions: Positions | None, block_m: int) -> int:
    """Programs of a kernel over rows."""
    n_rows = problem.n_rows if positions is None else positions.max_rows
    return n_sequences(problem) * problem.num_heads * n_rows * (problem.block_size // block_m)


def clear_gaps(
    problem: AttentionProblem, column: str, x: Tensor, y: Tensor | None = None, lse: Tensor | None = None
) -> list[Launch]:
    """Clear what the tokens in none of the packed sequences have in x, y (1, tokens, heads, dim) and lse."""
    sequences = problem.sequences
    if sequences is None or not sequences.is_packed:
        return []
    grid, arguments = clearing(sequences, column, x, y, lse)
    return [Launch(clear_gaps_kernel, grid, arguments, {"num_warps": 4})]


def forward_launch(
    problem: AttentionProblem, out: Tensor, lse: Tensor, capability: tuple[int, int]
) -> Launch:
    p, positions = problem, positions_of(problem)
    common = common_arguments(p, positions)
    padded = max(common["BLOCK_D"], common["BLOCK_DV"])
    tile = tuning.tiles("forward", padded, p.block_size, p.q.dtype, capability, 1, changes_every_score(p))
    arguments = {
        **common, "Out": out, "Lse": lse, **list_arguments(p, by_rows=True), **token_strides(out, "o", common["UNIT"]),
        "n_rows": p.n_rows if positions is None else None, "Sinks": p.sinks, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "has_edge": int(has_edge(p, positions)), "SCALE_POSITIVE": p.softmax_scale > 0.0,
    }  # fmt: skip
    grid = (row_programs(p, positions, tile.block_m),)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if positions is not None and tile.num_warps == 4 and p.q.dtype.itemsize == 2 and capability[0] == 9:
        # Three programs share a multiprocessor, as in a plain call; nothing is spilled.
        options["maxnreg"] = 168
    return Launch(forward_kernel, grid, arguments, options)


def launch_forward(problem: AttentionProblem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """out, which is `into` where that is given, and lse of a problem."""
    p, out = with_readable_inputs(problem), into
    if out is None:
        out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device=p.q.device)
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=torch.float32, device=p.q.device)
    forward_launch(p, out, lse, capability_of(p)).run()
    for launch in clear_gaps(p, "q_start", out, lse=lse):
        launch.run()
    return out, lse


class BackwardCall(NamedTuple):
    """A backward, with the memory that its kernels fill."""

    problem: AttentionProblem
    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    delta: Tensor
    # block_bias: of every tile of every block, to be summed: (sequences or 1, heads, num_block_ids, tiles); a block that no
    # two sequences share has one place for all of them, and likewise for heads. sinks: of every tile of queries
    grads: Gradients
    capability: tuple[int, int]
    positions: Positions | None
    common: dict[str, Any]  # arguments that the dq and dkdv kernels share


def changes_every_score(problem: AttentionProblem) -> bool:
    """Whether more is made of every product than its scaled exponential."""
    return problem.softcap != 0.0 or problem.alibi_slopes is not None


def is_wide(problem: AttentionProblem, positions: Positions | None) -> bool:
    """Whether the backward keeps more of every pair than that of a plain call: its place, its mask, or terms of its score."""
    return changes_every_score(problem) or problem.attn_bias is not None or positions is not None


def dq_tile(
    problem: AttentionProblem, positions: Positions | None, capability: tuple[int, int]
) -> tuning.Tiles:
    """Tiles of the dq kernel."""
    p = problem
    padded = max(padded_dim(p.head_dim), padded_dim(p.v_head_dim))
    return tuning.tiles(
        "dq", padded, p.block_size, p.q.dtype, capability, max(p.rates), is_wide(p, positions)
    )


def backward_call(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    capability: tuple[int, int],
    into: Tensor | None = None,
) -> BackwardCall:
    """The call, with memory for its results; dq is `into` where that is given."""
    p = problem
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (p.k, p.v))
    grad_q = torch.empty(p.q.shape, dtype=p.q.dtype, device=p.q.device) if into is None else into
    slots, positions = None, positions_of(p)
    if p.block_bias is not None:
        tile = dq_tile(p, positions, capability)
        n_tiles = p.block_size // tile.block_m * max(1, p.block_size // tile.block_n)
        bias, n_of_all = p.block_bias, n_sequences(p)
        of_sequences = 1 if bias.shape[0] == 1 and p.layout_batch == n_of_all else n_of_all
        of_heads = p.num_heads // p.layout_heads if bias.shape[1] == 1 else p.num_heads
        # a tile that never runs, because all of it is masked, leaves its slot 0
        shape = of_sequences, of_heads, bias.shape[2], n_tiles
        slots = torch.zeros(shape, dtype=torch.float32, device=p.q.device)
    sink_sums = None
    if p.sinks is not None:
        shape_of_sums = p.batch, p.num_heads, -(-p.q_len // DELTA_BLOCK)
        sink_sums = torch.empty(shape_of_sums, dtype=torch.float32, device=p.q.device)
    grads, delta = Gradients(grad_q, grad_k, grad_v, slots, sink_sums), torch.empty_like(lse)
    common = common_arguments(p, positions)
    common |= {
        "GradOut": grad_out,
        "Lse": lse,
        "Delta": delta,
        **token_strides(grad_out, "g", common["UNIT"]),
    }
    return BackwardCall(p, out, lse, grad_out, grad_lse, delta, grads, capability, positions, common)


def delta_launch(call: BackwardCall) -> Launch:
    """delta of every query, and the gradient of the sinks."""
    p, grad_lse = call.problem, call.lse if call.grad_lse is None else call.grad_lse
    unit = call.common["UNIT"]
    arguments = {
        "Out": call.out, "GradOut": call.grad_out, "GradLse": grad_lse, "Delta": call.delta,
        "Lse": None if p.sinks is None else call.lse, "Sinks": p.sinks, "SinkSums": call.grads.sinks,
        **token_strides(call.out, "o", unit), **token_strides(call.grad_out, "g", unit), **strides(grad_lse, "l", "bhs"),
        "q_len": p.q_len, "num_heads": p.num_heads,
        "V_HEAD_DIM": p.v_head_dim, "BLOCK_DV": padded_dim(p.v_head_dim),
        "BLOCK_M": DELTA_BLOCK, "HAS_GRAD_LSE": call.grad_lse is not None, "UNIT": unit,
    }  # fmt: skip
    grid = (p.batch * p.num_heads * -(-p.q_len // DELTA_BLOCK),)
    return Launch(delta_kernel, grid, arguments, {"num_warps": 4})


def dq_launch(call: BackwardCall) -> Launch:
    """dq by rows, and the gradient of the bias."""
    p, grads, positions = call.problem, call.grads, call.positions
    tile = dq_tile(p, positions, call.capability)
    slots = grads.block_bias
    arguments = {
        **call.common, **list_arguments(p, by_rows=True),
        "GradQ": grads.q, "GradBias": call.lse if slots is None else slots,
        **token_strides(grads.q, "o", call.common["UNIT"]), "n_rows": p.n_rows if positions is None else None,
        "n_slots": 0 if slots is None else slots.shape[2],
        "slot_sequences": 1 if slots is None else slots.shape[0], "slot_heads": 1 if slots is None else slots.shape[1],
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "has_edge": int(has_edge(p, positions)),
    }  # fmt: skip
    grid = (row_programs(p, positions, tile.block_m),)
    return Launch(dq_kernel, grid, arguments, {"num_warps": tile.num_warps, "num_stages": tile.num_stages})


def dkdv_launch(call: BackwardCall) -> Launch:
    """dk and dv by columns."""
    p, grads, positions = call.problem, call.grads, call.positions
    padded = max(padded_dim(p.head_dim), padded_dim(p.v_head_dim))
    wide = is_wide(p, positions)
    tile = tuning.tiles("dkdv", padded, p.block_size, p.q.dtype, call.capability, max(p.rates), wide)
    key_stride = max(p.rates)
    keys = p.block_size // key_stride
    block_n = max(16, min(tile.block_n, keys))
    # few keys: see dkdv_step; not in the loop over small blocks, where ptxas 12.8 does not compute its addresses
    queries_first = (
        not wide
        and block_n < 64 <= tile.block_m <= p.block_size
        and key_stride > 1
        and padded >= 64
        and call.capability[0] == 9
    )
    has_edge_rows = positions is not None or p.q_len % p.block_size != 0 or p.q_offset % p.block_size != 0
    arguments = {
        **call.common, **list_arguments(p, by_rows=False),
        "GradK": grads.k, "GradV": grads.v, **token_strides(grads.k, "x", call.common["UNIT"]), **token_strides(grads.v, "y", call.common["UNIT"]),
        "n_cols": p.n_cols if positions is None else None, "BLOCK_M": tile.block_m, "BLOCK_N": block_n, "KEY_STRIDE": key_stride,
        "has_edge": int(has_edge_rows), "EVEN_Q": queries_first and not has_edge_rows, "QUERIES_FIRST": queries_first,
        "GROUPED": p.num_heads > p.num_kv_heads,
    }  # fmt: skip
    n_cols = p.n_cols if positions is None else positions.max_cols
    grid = (n_sequences(p) * p.num_kv_heads * n_cols * key_stride * -(-keys // block_n),)
    return Launch(dkdv_kernel, grid, arguments, {"num_warps": tile.num_warps, "num_stages": tile.num_stages})


PASSES = (delta_launch, dq_launch, dkdv_launch)  # of a backward, one after the other


def backward_launches(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    capability: tuple[int, int],
    into: Tensor | None = None,
) -> tuple[list[Launch], Gradients]:
    """The kernels of a backward, in order, and what they fill; dq is `into` where that is given."""
    call = backward_call(problem, out, lse, grad_out, grad_lse, capability, into)
    grads = call.grads
    of_gaps = clear_gaps(problem, "q_start", grads.q) + clear_gaps(problem, "kv_start", grads.k, grads.v)
    return [launch_of(call) for launch_of in PASSES] + of_gaps, grads


def launch_backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    into: Tensor | None = None,
) -> Gradients:
    """Gradients of a problem; dq is `into` where that is given."""
    p, unit = with_readable_inputs(problem), unit_of(problem)
    out, grad_out = readable(out, unit), readable(grad_out, unit)
    launches, grads = backward_launches(p, out, lse, grad_out, grad_lse, capability_of(p), into)
    for launch in launches:
        launch.run()
    if grads.block_bias is not None:
        grads = grads._replace(block_bias=grads.block_bias.sum(-1))
    if grads.sinks is not None:
        grads = grads._replace(sinks=grads.sinks.sum((0, 2)))
    return grads
