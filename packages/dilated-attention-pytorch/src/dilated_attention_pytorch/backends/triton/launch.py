"""Grids and arguments of the portable kernels; no maths."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dropout import keep_threshold
from ..problem import AttentionProblem, Gradients
from . import tuning
from .kernels.backward import delta_kernel, dkdv_kernel, dq_kernel
from .kernels.forward import forward_kernel

# The interpreter has no architecture; results do not depend on this one.
INTERPRETER_CAPABILITY = (8, 0)
DELTA_BLOCK = 64


class Launch(NamedTuple):
    """A kernel call, ready to run or to compile."""

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, int]

    def run(self) -> None:
        if self.grid[0] > 0:
            # fused multiply-adds are no longer the default in Triton 3.10, of which 3.9 warns
            self.kernel[self.grid](**self.arguments, **self.options, enable_fp_fusion=True)


def strides(tensor: Tensor, suffix: str, axes: str) -> dict[str, int]:
    return {f"stride_{suffix}{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)}


def capability_of(problem: AttentionProblem) -> tuple[int, int]:
    device = problem.q.device
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETER_CAPABILITY


def padded_dim(dim: int) -> int:
    """The power of two, at least 16, that holds a head_dim."""
    return max(16, 1 << (dim - 1).bit_length())


def common_arguments(problem: AttentionProblem) -> dict[str, Any]:
    """Arguments that the forward, dq and dkdv kernels share."""
    p = problem
    bias, padding = p.block_bias, p.key_padding_mask
    bias_strides = [0, 0, 0]
    if bias is not None:
        sizes = zip(bias.shape[:2], bias.stride()[:2], strict=True)
        bias_strides = [*(0 if size == 1 else stride for size, stride in sizes), bias.stride(2)]
    padding_strides = (0, 0) if padding is None else padding.stride()
    dummy = p.q  # never read: the flags below are off
    return {
        "Q": p.q, "K": p.k, "V": p.v,
        "Bias": dummy if bias is None else bias,
        "KvLengths": dummy if p.kv_lengths is None else p.kv_lengths,
        "Padding": dummy if padding is None else padding.view(torch.int8),
        "Seed": dummy if p.seed is None else p.seed,
        **strides(p.q, "q", "bshd"), **strides(p.k, "k", "bshd"), **strides(p.v, "v", "bshd"),
        "stride_bb": bias_strides[0], "stride_bh": bias_strides[1], "stride_be": bias_strides[2],
        "stride_pb": padding_strides[0], "stride_ps": padding_strides[1],
        "q_len": p.q_len, "kv_len": p.kv_len, "q_offset": p.q_offset, "first_row": p.first_row,
        "num_heads": p.num_heads, "softmax_scale": p.softmax_scale,
        "threshold": keep_threshold(p.dropout_p), "keep_scale": 1.0 / (1.0 - p.dropout_p),
        "GROUP": p.num_heads // p.num_kv_heads, "HEADS_PER_LIST": p.num_heads // p.layout_heads,
        "HEAD_DIM": p.head_dim, "V_HEAD_DIM": p.v_head_dim,
        "BLOCK_D": padded_dim(p.head_dim), "BLOCK_DV": padded_dim(p.v_head_dim), "BLOCK_SIZE": p.block_size,
        "N_CLASSES": len(p.rates),
        "RATES_LOG2": sum((rate.bit_length() - 1) << (4 * i) for i, rate in enumerate(p.rates)),
        "IS_CAUSAL": p.is_causal, "HAS_BIAS": bias is not None, "HAS_KV_LENGTHS": p.kv_lengths is not None,
        "HAS_PADDING": padding is not None, "DROPOUT": p.dropout_p > 0.0,
        "PRECISION": "ieee",  # of float32 products; TF32 would lose 13 bits of them
    }  # fmt: skip


def has_edge(problem: AttentionProblem) -> bool:
    """Whether some query may see only a part of an active block."""
    p = problem
    return (
        p.is_causal
        or p.kv_lengths is not None
        or p.key_padding_mask is not None
        or p.kv_len % p.block_size != 0
    )


def forward_launch(
    problem: AttentionProblem, out: Tensor, lse: Tensor, capability: tuple[int, int]
) -> Launch:
    p = problem
    common = common_arguments(p)
    tile = tuning.tiles(
        "forward", max(common["BLOCK_D"], common["BLOCK_DV"]), p.block_size, p.q.dtype, capability
    )
    arguments = {
        **common, "Out": out, "Lse": lse,
        "Offsets": p.rows.indptr, "Indices": p.rows.indices, "Entries": p.rows.block_ids,
        **strides(out, "o", "bshd"), "n_rows": p.n_rows, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n,
        "HAS_EDGE": has_edge(p), "SCALE_POSITIVE": p.softmax_scale > 0.0,
    }  # fmt: skip
    grid = (p.batch * p.num_heads * p.n_rows * (p.block_size // tile.block_m),)
    return Launch(
        forward_kernel, grid, arguments, {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    )


def launch_forward(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a problem."""
    p = problem
    out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device=p.q.device)
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=torch.float32, device=p.q.device)
    forward_launch(p, out, lse, capability_of(p)).run()
    return out, lse


class BackwardCall(NamedTuple):
    """A backward, with the memory that its kernels fill."""

    problem: AttentionProblem
    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    delta: Tensor
    # block_bias: of every tile of every entry, to be summed: (batch, num_heads, entries, tiles)
    grads: Gradients
    capability: tuple[int, int]
    common: dict[str, Any]  # arguments that the dq and dkdv kernels share


def dq_tile(problem: AttentionProblem, capability: tuple[int, int]) -> tuning.Tiles:
    """Tiles of the dq kernel."""
    p = problem
    padded = max(padded_dim(p.head_dim), padded_dim(p.v_head_dim))
    return tuning.tiles("dq", padded, p.block_size, p.q.dtype, capability, max(p.rates))


def backward_call(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    capability: tuple[int, int],
) -> BackwardCall:
    """The call, with memory for its results."""
    p = problem
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (p.q, p.k, p.v))
    slots = None
    if p.block_bias is not None:
        tile = dq_tile(p, capability)
        n_tiles = p.block_size // tile.block_m * max(1, p.block_size // tile.block_n)
        shape = p.batch, p.num_heads, p.rows.indices.numel(), n_tiles
        # a tile that never runs, because all of it is masked, leaves its slot 0
        slots = torch.zeros(shape, dtype=torch.float32, device=p.q.device)
    grads, delta = Gradients(grad_q, grad_k, grad_v, slots), torch.empty_like(lse)
    common = common_arguments(p) | {
        "GradOut": grad_out, "Lse": lse, "Delta": delta, **strides(grad_out, "g", "bshd"),
    }  # fmt: skip
    return BackwardCall(p, out, lse, grad_out, grad_lse, delta, grads, capability, common)


def delta_launch(call: BackwardCall) -> Launch:
    """delta of every query."""
    p, grad_lse = call.problem, call.lse if call.grad_lse is None else call.grad_lse
    arguments = {
        "Out": call.out, "GradOut": call.grad_out, "GradLse": grad_lse, "Delta": call.delta,
        **strides(call.out, "o", "bshd"), **strides(call.grad_out, "g", "bshd"), **strides(grad_lse, "l", "bhs"),
        "q_len": p.q_len, "num_heads": p.num_heads, "V_HEAD_DIM": p.v_head_dim, "BLOCK_DV": padded_dim(p.v_head_dim),
        "BLOCK_M": DELTA_BLOCK, "HAS_GRAD_LSE": call.grad_lse is not None,
    }  # fmt: skip
    grid = (p.batch * p.num_heads * -(-p.q_len // DELTA_BLOCK),)
    return Launch(delta_kernel, grid, arguments, {"num_warps": 4})


def dq_launch(call: BackwardCall) -> Launch:
    """dq by rows, and the gradient of the bias."""
    p, grads = call.problem, call.grads
    tile = dq_tile(p, call.capability)
    arguments = {
        **call.common, "Offsets": p.rows.indptr, "Indices": p.rows.indices, "Entries": p.rows.block_ids,
        "GradQ": grads.q, "GradBias": call.lse if grads.block_bias is None else grads.block_bias,
        **strides(grads.q, "o", "bshd"), "n_rows": p.n_rows, "n_entries": p.rows.indices.numel(),
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "HAS_EDGE": has_edge(p),
    }  # fmt: skip
    grid = (p.batch * p.num_heads * p.n_rows * (p.block_size // tile.block_m),)
    return Launch(dq_kernel, grid, arguments, {"num_warps": tile.num_warps, "num_stages": tile.num_stages})


def dkdv_launch(call: BackwardCall) -> Launch:
    """dk and dv by columns."""
    p, grads = call.problem, call.grads
    padded = max(padded_dim(p.head_dim), padded_dim(p.v_head_dim))
    tile = tuning.tiles("dkdv", padded, p.block_size, p.q.dtype, call.capability, max(p.rates))
    key_stride = max(p.rates)
    keys = p.block_size // key_stride
    block_n = max(16, min(tile.block_n, keys))
    # few keys: see dkdv_step; not in the loop over small blocks, where ptxas 12.8 does not compute its addresses
    queries_first = (
        block_n < 64 <= tile.block_m <= p.block_size
        and key_stride > 1
        and padded >= 64
        and call.capability[0] == 9
    )
    has_key_mask = (
        p.kv_len % p.block_size != 0
        or keys % block_n != 0
        or p.kv_lengths is not None
        or p.key_padding_mask is not None
    )
    arguments = {
        **call.common, "Offsets": p.cols.indptr, "Indices": p.cols.indices, "Entries": p.cols.block_ids,
        "GradK": grads.k, "GradV": grads.v, **strides(grads.k, "x", "bshd"), **strides(grads.v, "y", "bshd"),
        "n_cols": p.n_cols, "BLOCK_M": tile.block_m, "BLOCK_N": block_n, "KEY_STRIDE": key_stride,
        "EVEN_Q": p.q_len % p.block_size == 0 and p.q_offset % p.block_size == 0,
        "HAS_KEY_MASK": has_key_mask, "QUERIES_FIRST": queries_first,
    }  # fmt: skip
    grid = (p.batch * p.num_kv_heads * p.n_cols * key_stride * -(-keys // block_n),)
    return Launch(dkdv_kernel, grid, arguments, {"num_warps": tile.num_warps, "num_stages": tile.num_stages})


PASSES = (delta_launch, dq_launch, dkdv_launch)  # of a backward, one after the other


def backward_launches(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    capability: tuple[int, int],
) -> tuple[list[Launch], Gradients]:
    """The kernels of a backward, in order, and what they fill."""
    call = backward_call(problem, out, lse, grad_out, grad_lse, capability)
    return [launch_of(call) for launch_of in PASSES], call.grads


def launch_backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Gradients:
    """Gradients of a problem."""
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    launches, grads = backward_launches(problem, out, lse, grad_out, grad_lse, capability_of(problem))
    for launch in launches:
        launch.run()
    if grads.block_bias is None:
        return grads
    return grads._replace(block_bias=grads.block_bias.sum(-1))
