"""The checks of a decoding call: every message names the argument, its value and what to pass instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _torch_internals, values
from ..backends.decode_problem import MAX_QUERIES, DecodeInputs, DecodeProblem, max_len_of
from ..eager import is_plain_eager
from ..layout.layout import BlockLayout
from .layouts import check_layout
from .numbers import checked_scale, checked_softcap
from .scores import check_per_head
from .tensors import check_is_tensor

SHAPES = {
    "q": "(batch, q_len, num_heads, head_dim)",
    "k_cache": "(batch, max_len, num_kv_heads, head_dim), or (num_pages, page_size, num_kv_heads, head_dim) with a block_table",
    "v_cache": "(batch, max_len, num_kv_heads, v_head_dim), or (num_pages, page_size, num_kv_heads, v_head_dim) with a block_table",
}


def check_decode(
    inputs: DecodeInputs, layout: BlockLayout, *, softmax_scale: float | None, softcap: float | None
) -> DecodeProblem:
    """The problem that the arguments of `block_sparse_decode` ask for."""
    check_kinds(inputs)
    check_caches(inputs)
    check_layout(inputs.q, inputs.k_cache, layout, True, inputs.q.shape[0])
    check_positions_of_layout(inputs.q, layout)
    batch = inputs.q.shape[0]
    check_integers("cache_lengths", inputs.cache_lengths, "(batch,)", (batch,))
    if inputs.kv_starts is not None:
        check_integers("kv_starts", inputs.kv_starts, "(batch,)", (batch,))
    for name, value in (("alibi_slopes", inputs.alibi_slopes), ("sinks", inputs.sinks)):
        if value is not None:
            check_per_head(name, value, inputs.q)
    check_no_gradients(inputs)
    if is_plain_eager() and all(type(x) in (Tensor, torch.nn.Parameter) for x in inputs if x is not None):
        check_values(inputs, layout)
    scale, cap = softmax_scale, softcap
    if not torch.compiler.is_compiling():  # a tracer has symbols for numbers
        scale, cap = checked_scale(softmax_scale), checked_softcap(softcap)
    return DecodeProblem(
        inputs=inputs,
        rows=layout.row_lists,
        block_masks=layout.block_masks,
        grid=layout.grid,
        layout_batch=layout.batch,
        layout_heads=layout.num_heads,
        softmax_scale=float(1.0 / math.sqrt(inputs.q.shape[3]) if scale is None else scale),
        softcap=float(0.0 if cap is None else cap),
    )


# ---- tensors


def check_kinds(inputs: DecodeInputs) -> None:
    """Raise unless all are strided tensors on the device of q."""
    for name, value in inputs._asdict().items():
        if value is None and name in ("block_table", "kv_starts", "alibi_slopes", "sinks"):
            continue
        check_is_tensor(name, value)
        if value.is_nested or value.layout != torch.strided:
            what = "a nested tensor" if value.is_nested else f"layout {value.layout}"
            raise TypeError(f"{name} must be a dense tensor, got {what}")
        if hasattr(value, "to_local") and hasattr(value, "placements"):
            raise TypeError(f"{name} is a DTensor; call with {name}.to_local() and the heads of this rank")
        if value.device != inputs.q.device:
            raise ValueError(
                f"{name} must be on {inputs.q.device} as q, got {value.device}; use {name}.to(q.device) once, not per step"
            )


def check_caches(inputs: DecodeInputs) -> None:
    """Raise unless q and the caches fit together."""
    q, k, v, table = inputs.q, inputs.k_cache, inputs.v_cache, inputs.block_table
    for name, value in (("q", q), ("k_cache", k), ("v_cache", v)):
        if value.dim() != 4 or value.shape[3] == 0:
            raise ValueError(f"{name} must be {SHAPES[name]}, got shape {tuple(value.shape)}")
        if value.dtype not in values.DTYPES:
            raise ValueError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")
        if value.dtype != q.dtype:
            raise ValueError(
                f"q, k_cache and v_cache must have one dtype, got q {q.dtype} and {name} {value.dtype}; use q.to({value.dtype})"
            )
    if not 1 <= q.shape[1] <= MAX_QUERIES:
        raise ValueError(
            f"q must have 1 to {MAX_QUERIES} queries, got {q.shape[1]} in shape {tuple(q.shape)}; for more use "
            "block_sparse_attention with is_causal=True, q_offset=cache_lengths - q_len and kv_lengths=cache_lengths"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v_cache must be {tuple(k.shape[:3])} in front as k_cache, got {tuple(v.shape[:3])}"
        )
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k_cache must have q's head_dim {q.shape[3]}, got {k.shape[3]}")
    if q.shape[2] == 0:
        raise ValueError(f"num_heads must be at least 1, got q {tuple(q.shape)}")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"num_kv_heads of k_cache must divide num_heads {q.shape[2]}, got {k.shape[2]} in shape {tuple(k.shape)}; "
            f"k_cache is {SHAPES['k_cache']}"
        )
    if table is None:
        if k.shape[0] != q.shape[0]:
            raise ValueError(
                f"k_cache must have q's batch size {q.shape[0]}, got {k.shape[0]}; a cache of pages needs a block_table"
            )
        return
    check_integers(
        "block_table", table, "(batch, max_pages)", (q.shape[0], table.shape[-1] if table.dim() else 0)
    )
    if k.shape[1] == 0:
        raise ValueError(f"page_size of k_cache must be at least 1, got shape {tuple(k.shape)}")


def check_integers(name: str, value: Tensor, axes: str, shape: tuple[int, ...]) -> None:
    """Raise unless the tensor is int32 of this shape."""
    if value.dtype != torch.int32 or value.shape != shape:
        fix = f"; use {name}.to(torch.int32) once, not per step" if value.dtype != torch.int32 else ""
        raise ValueError(
            f"{name} must be torch.int32 {axes} = {shape}, got {value.dtype} {tuple(value.shape)}{fix}"
        )


def check_no_gradients(inputs: DecodeInputs) -> None:
    """Raise where a gradient would be lost."""
    if _torch_internals.is_forward_mode():
        for name, value in inputs._asdict().items():
            if value is not None and forward_ad.unpack_dual(value).tangent is not None:
                raise RuntimeError(
                    f"block_sparse_decode has no gradients, but {name} has a tangent; use block_sparse_attention"
                )
    if not torch.is_grad_enabled():
        return
    for name, value in inputs._asdict().items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name} requires grad, but block_sparse_decode has no backward; call it under torch.no_grad(), or use "
                "block_sparse_attention with is_causal=True, q_offset=cache_lengths - q_len and kv_lengths=cache_lengths"
            )


# ---- the layout


def check_positions_of_layout(q: Tensor, layout: BlockLayout) -> None:
    """Raise unless the layout is one over positions, on this device."""
    if not layout.causal and layout.q_len != layout.kv_len:
        raise ValueError(
            f"layout must be over the positions of one sequence, got q_len {layout.q_len} and kv_len {layout.kv_len} with "
            "causal=False; make it with causal=True for the longest length"
        )
    if layout.device != q.device:
        raise ValueError(
            f"layout must be on {q.device} as q, got {layout.device}; use layout.to(q.device) once, not per step"
        )


# ---- values, where reading them waits for no GPU


def check_values(inputs: DecodeInputs, layout: BlockLayout) -> None:
    """Raise if a length, a start or a page on the CPU is out of its range."""
    lengths, starts, table = inputs.cache_lengths, inputs.kv_starts, inputs.block_table
    if lengths.device.type != "cpu" or lengths.numel() == 0:
        return
    most, shortest, longest = max_len_of(inputs), int(lengths.min()), int(lengths.max())
    if shortest < 0 or longest > most:
        raise ValueError(
            f"cache_lengths must be 0 to max_len {most}, got {shortest if shortest < 0 else longest}; max_len is "
            + ("that of k_cache" if table is None else "max_pages * page_size")
        )
    n_positions = longest
    if starts is not None:
        if int(starts.min()) < 0 or bool((starts > lengths).any()):
            raise ValueError(
                f"kv_starts must be 0 to cache_lengths, got {starts.tolist()} with cache_lengths {lengths.tolist()}"
            )
        n_positions = int((lengths - starts).max())
    grid = layout.grid
    covered = min(grid.q_offset + grid.q_len, grid.kv_len)
    if n_positions > covered:
        raise ValueError(
            f"layout covers {covered} positions, but an element has {n_positions}; make it for the longest length"
        )
    q_len = inputs.q.shape[1]
    if grid.first_row > 0 and n_positions:
        first = int(
            (lengths if starts is None else lengths - starts).masked_fill(lengths == 0, n_positions).min()
        )
        if max(0, first - q_len) < grid.first_row * grid.block_size:
            raise ValueError(
                f"layout begins at position {grid.first_row * grid.block_size}, but a query is at {max(0, first - q_len)}; "
                "make it with q_len = kv_len"
            )
    if table is not None:
        size = inputs.k_cache.shape[1]
        page = torch.arange(table.shape[1], device="cpu") * size
        is_used = page < lengths[:, None]
        if starts is not None:
            is_used &= page + size > starts[:, None]
        bad = table[is_used & ((table < 0) | (table >= inputs.k_cache.shape[0]))]
        if bad.numel():
            raise ValueError(
                f"block_table must hold pages 0 to {inputs.k_cache.shape[0] - 1} of k_cache up to cache_lengths, got {int(bad[0])}"
            )
