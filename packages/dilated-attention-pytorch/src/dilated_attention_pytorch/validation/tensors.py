"""q, k, v and what all tensors of a call have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import PLAIN_TYPES
from ..config_warnings import warn_caller
from ..layout.cache import Pattern
from ..layout.layout import BlockLayout
from ..values import DTYPES

SHAPE = "(batch, seq_len, num_heads, head_dim)"
PACKED_SHAPE = "(total, num_heads, head_dim)"
# Few models have more kv heads than this; a sequence length in their place often is.
MANY_HEADS = 32
OPTIONS = {
    "block_bias": "floating point (batch, num_heads, layout.num_block_ids)",
    "attn_bias": "floating point (batch, num_heads, q_len, kv_len)",
    "sinks": "floating point (num_heads,)",
    "alibi_slopes": "floating point (num_heads,)",
    "q_offset": "int (batch,)",
    "kv_lengths": "int (batch,)",
    "kv_starts": "int (batch,)",
    "key_padding_mask": "bool (batch, kv_len)",
    "cu_seqlens_q": "int32 (sequences + 1,)",
    "cu_seqlens_k": "int32 (sequences + 1,)",
}


def check_qkv(q: Tensor, k: Tensor, v: Tensor, shape: str = SHAPE) -> None:
    """Raise unless q, k and v are strided tensors; `check_tensors` checks their shapes and types."""
    if (
        type(q) in PLAIN_TYPES
        and type(k) in PLAIN_TYPES
        and type(v) in PLAIN_TYPES
        and q.layout == k.layout == v.layout == torch.strided
        and not (q.is_nested or k.is_nested or v.is_nested)
    ):
        return
    for name, value in (("q", q), ("k", k), ("v", v)):
        if value is None:
            raise TypeError(
                f"{name} must be a tensor, got None; pass a tensor {shape} (self-attention: as q)"
            )
        check_is_tensor(name, value)
        check_kind(name, value, shape)


def check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        fix = "use torch.as_tensor(...)"
        if name == "key_padding_mask" and isinstance(value, bool):  # the fifth argument of 0.2.0
            fix = "if this is return_attention_weights, pass it by name"
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; {fix}")


def check_kind(name: str, value: Tensor, shape: str) -> None:
    """Refuse tensors whose elements are not laid out by strides on this process's device."""
    if isinstance(value, torch.masked.MaskedTensor):
        raise TypeError(
            f"{name} is a MaskedTensor; use {name}.get_data(), and pass the masked keys as key_padding_mask"
        )
    if value.is_nested and shape == PACKED_SHAPE:
        raise TypeError(
            f"{name} is a nested tensor; pass {name}.values(), and {name}.offsets().int() as cu_seqlens_"
            f"{'q' if name == 'q' else 'k'}"
        )
    if value.is_nested:
        raise TypeError(
            f"{name} is a nested tensor; pad it with torch.nested.to_padded_tensor({name}, 0.0) to {SHAPE} and pass the "
            "lengths as kv_lengths, or a key_padding_mask; or use block_sparse_attention_varlen with its values()"
        )
    if type(value) not in PLAIN_TYPES and hasattr(value, "to_local") and hasattr(value, "placements"):
        raise TypeError(
            f"{name} is a DTensor; shard over the heads, Shard({1 if shape == PACKED_SHAPE else 2}), call with {name}.to_local() and the heads of this "
            "rank, and make the output a DTensor again with DTensor.from_local"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; use {name}.to_dense()")


def check_kind_of_option(name: str, value: Tensor) -> None:
    """`check_kind` for an option; the message says what a tensor of this name must be."""
    if value.is_nested:
        kind, fix = "a nested tensor", f"torch.nested.to_padded_tensor({name}, ...)"
    elif type(value) not in PLAIN_TYPES and isinstance(value, torch.masked.MaskedTensor):
        kind, fix = "a MaskedTensor", f"{name}.get_data()"
    elif type(value) not in PLAIN_TYPES and hasattr(value, "to_local") and hasattr(value, "placements"):
        kind, fix = "a DTensor", f"{name}.to_local() if it is sharded as q, else {name}.full_tensor()"
    elif value.layout != torch.strided:
        kind, fix = f"layout {value.layout}", f"{name}.to_dense()"
    else:
        return
    raise TypeError(f"{name} must be a dense tensor, {OPTIONS[name]}, got {kind}; use {fix}")


def check_option(name: str, value: Tensor, q: Tensor) -> None:
    """Raise unless an optional tensor is dense, and has values if q has."""
    check_is_tensor(name, value)
    check_kind_of_option(name, value)
    if value.is_meta and not q.is_meta:
        raise ValueError(f"{name} must be on {q.device} as q, got a tensor on meta, which holds no values")


def fit_together(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """The conditions of `check_tensors` in one expression, without the cost of its messages."""
    of_q, of_k, of_v = q.shape, k.shape, v.shape
    return (
        len(of_q) == len(of_k) == len(of_v) == 4
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
        and of_q[0] == of_k[0] == of_v[0]
        and of_q[3] == of_k[3]
        and of_k[1:3] == of_v[1:3]
        and of_k[2] != 0
        and of_q[3] != 0
        and of_v[3] != 0
        and of_q[2] % of_k[2] == 0
    )


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if fit_together(q, k, v):
        return
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be {SHAPE}, got shape {tuple(tensor.shape)}")
        if not tensor.dtype.is_floating_point:
            fix = "dequantize()" if tensor.is_quantized else "real" if tensor.is_complex() else "float()"
            raise ValueError(f"{name} must be a floating point tensor, got {tensor.dtype}; use {name}.{fix}")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}; use {name}.to(torch.bfloat16), "
                "times the scale that it was divided by, if any"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"q, k and v must be on one device, got q on {q.device} and {name} on {tensor.device}"
            )
        if tensor.dtype != q.dtype:
            raise ValueError(f"q, k and v must have one dtype, got q {q.dtype} and {name} {tensor.dtype}")
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(
                f"q, k and v must have one batch size, got q {q.shape[0]} and {name} {tensor.shape[0]}"
            )
        if tensor.shape[3] == 0:
            raise ValueError(f"head_dim must be at least 1, got {name} with head_dim 0")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have q's head_dim {q.shape[3]}, got {k.shape[3]}")
    few_tokens = k.shape[1] < k.shape[2]
    order = transposed_hint(q, k, v, few_tokens and fit_together(*(x.transpose(1, 2) for x in (q, k, v))))
    if v.shape[1:3] != k.shape[1:3]:
        raise ValueError(
            f"v must have k's seq_len and num_heads {tuple(k.shape[1:3])}, got {tuple(v.shape[1:3])}{order}"
        )
    if q.shape[2] == 0:
        raise ValueError(f"num_heads must be at least 1, got q {tuple(q.shape)}")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"num_kv_heads must divide num_heads {q.shape[2]}, got {k.shape[2]}{order}")


def transposed_hint(q: Tensor, k: Tensor, v: Tensor, fits: bool) -> str:
    """The end of a message if the tensors would fit with their second and third axes exchanged, else nothing."""
    if not fits:
        return ""
    return (
        f"; q {tuple(q.shape)} and k {tuple(k.shape)} look like (batch, num_heads, seq_len, head_dim), but {SHAPE} is "
        "needed: use q.transpose(1, 2), also for k and v"
    )


def warn_of_order(q: Tensor, k: Tensor, layout: BlockLayout | Pattern) -> None:
    """Warn if arguments that fit look like (batch, num_heads, seq_len, head_dim)."""
    if torch.compiler.is_compiling():
        return
    of_q, of_k = q.shape, k.shape
    # a step of decoding may have a short cache
    has_many_heads = of_k[2] > MANY_HEADS and of_k[2] >= 4 * of_k[1] and of_q[1] > 1
    if isinstance(layout, BlockLayout) and not has_many_heads:
        lengths = (layout.q_len, layout.kv_len)
        has_many_heads = lengths == (of_q[2], of_k[2]) and lengths != (of_q[1], of_k[1]) and of_k[2] > 1
    if has_many_heads:
        warn_caller(
            f"k {tuple(of_k)} is read as {of_k[1]} tokens of {of_k[2]} heads; the shape is {SHAPE}: "
            "if it is (batch, num_heads, seq_len, head_dim), use q.transpose(1, 2), also for k and v",
            UserWarning,
        )
