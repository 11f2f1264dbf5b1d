"""The checks of an attention call: every message names the argument, its value and what to pass instead."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import values
from .backends.registry import BACKEND_NAMES
from .call import PLAIN_TYPES, Call
from .config import TokenDilation
from .eager import autocast_dtype, is_plain_eager
from .layout.cache import Pattern
from .layout.layout import BlockLayout
from .values import shown

INT_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Few models have more kv heads than this; a sequence length in their place often is.
MANY_HEADS = 32
SHAPE = "(batch, seq_len, num_heads, head_dim)"
OPTIONS = {
    "block_bias": "floating point (batch, num_heads, num_active_blocks)",
    "kv_lengths": "int (batch,)",
    "key_padding_mask": "bool (batch, kv_len)",
}


# ---- the call


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | Pattern,
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    block_bias: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
) -> Call:
    """The call that the arguments of `block_sparse_attention` ask for, with a dropout seed drawn.

    A pattern stands for its layout of the lengths of q and k.
    """
    check_qkv(q, k, v)
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    check_tensors(q, k, v)
    if not torch.compiler.is_compiling():  # a tracer has symbols for numbers
        check_numbers(is_causal, softmax_scale, dropout_p)
    if isinstance(layout, Pattern):
        check_layout_heads(q, k, layout.num_heads)
    else:
        check_layout(q, k, layout, is_causal)
    if kv_lengths is not None:
        kv_lengths = check_kv_lengths(kv_lengths, q, k, is_causal, readable=is_plain_eager())
    if key_padding_mask is not None:
        key_padding_mask = check_key_padding_mask(
            key_padding_mask, q, k, is_causal, readable=is_plain_eager()
        )
    if block_bias is not None:
        assert isinstance(layout, BlockLayout)  # no caller has a bias for a pattern
        block_bias = savable(check_block_bias(block_bias, q, layout), q, k, v)
    warn_of_order(q, k)
    if kv_lengths is not None or key_padding_mask is not None:
        kv_lengths = unchanged(kv_lengths, q, k, v, block_bias)
        key_padding_mask = unchanged(key_padding_mask, q, k, v, block_bias)
    return Call(
        q=q,
        k=k,
        v=v,
        block_bias=block_bias,
        kv_lengths=kv_lengths,
        key_padding_mask=key_padding_mask,
        seed=torch.randint(2**62, (1,), device=q.device, dtype=torch.int64) if dropout_p > 0.0 else None,
        # numbers too: torch.compile of torch 2.6 knows no bool() of a symbol
        is_causal=is_causal if isinstance(is_causal, bool) else is_causal != 0,
        softmax_scale=float(1.0 / math.sqrt(q.shape[3]) if softmax_scale is None else softmax_scale),
        dropout_p=float(dropout_p),
        dilation=TokenDilation.from_user(segment_lengths, dilation_rates, layout.block_size),
    )


def will_be_saved(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether a backward will read the inputs of the call."""
    return torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad or (bias is not None and bias.requires_grad)
    )


def savable(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The bias, or a copy that autograd can save where it was made in inference mode."""
    if not torch.compiler.is_compiling() and bias.is_inference() and will_be_saved(q, k, v, None):
        return bias.clone()
    return bias


def unchanged(mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor | None:
    """The mask, or a copy where a backward will read it: a buffer that is refilled must not change the gradient."""
    return mask.clone() if mask is not None and will_be_saved(q, k, v, bias) else mask


# ---- tensors


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
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
                f"{name} must be a tensor, got None; pass a tensor {SHAPE} (self-attention: as q)"
            )
        check_is_tensor(name, value)
        check_kind(name, value)


def check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor(...)")


def check_kind(name: str, value: Tensor) -> None:
    """Refuse tensors whose elements are not laid out by strides on this process's device."""
    if isinstance(value, torch.masked.MaskedTensor):
        raise TypeError(
            f"{name} is a MaskedTensor; use {name}.get_data(), and pass the masked keys as key_padding_mask"
        )
    if value.is_nested:
        raise TypeError(
            f"{name} is a nested tensor; pad it with torch.nested.to_padded_tensor({name}, 0.0) to {SHAPE} and pass the "
            "lengths as kv_lengths, or a key_padding_mask"
        )
    if type(value) not in PLAIN_TYPES and hasattr(value, "to_local") and hasattr(value, "placements"):
        raise TypeError(
            f"{name} is a DTensor; shard over the heads, Shard(2), call with {name}.to_local() and the heads of this "
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
        and q.is_floating_point()
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


# ---- the layout


def check_layout(q: Tensor, k: Tensor, layout: BlockLayout, is_causal: bool) -> None:
    if not isinstance(layout, BlockLayout):
        raise ValueError(
            f"layout must be a BlockLayout, got {type(layout).__name__}; make one with BlockLayout.from_config"
        )
    q_len, kv_len = q.shape[1], k.shape[1]
    if (layout.q_len, layout.kv_len) != (q_len, kv_len):
        hint = transposed_hint(q, k, k, (layout.q_len, layout.kv_len) == (q.shape[2], k.shape[2]))
        raise ValueError(
            f"layout is for q_len {layout.q_len} and kv_len {layout.kv_len}, but q has {q_len} and k {kv_len} tokens"
            + (
                hint
                or "; make it for these, from_dense with q_len= and kv_len= where the last block is not full"
            )
        )
    if layout.causal and not is_causal:
        raise ValueError(
            "is_causal=False needs a layout made with causal=False, got causal=True: queries would see later keys "
            "of their own block; pass is_causal=True, or make the layout with causal=False"
        )
    if is_causal and q_len != kv_len and not layout.causal:
        raise ValueError(
            f"is_causal=True with q_len {q_len} != kv_len {kv_len} needs a layout made with causal=True, "
            "got causal=False"
        )
    check_layout_heads(q, k, layout.num_heads)


def check_layout_heads(q: Tensor, k: Tensor, num_heads: int) -> None:
    if num_heads not in (1, k.shape[2], q.shape[2]):
        raise ValueError(
            f"layout must have 1 head, num_kv_heads {k.shape[2]} or num_heads {q.shape[2]}, got {num_heads}; "
            "give one pattern for all heads, or one per head or kv head (the list sparse_config, the mask's first axis)"
        )


def warn_of_order(q: Tensor, k: Tensor) -> None:
    """Warn if arguments that fit look like (batch, num_heads, seq_len, head_dim)."""
    if (
        k.shape[2] > MANY_HEADS
        and k.shape[2] >= 4 * k.shape[1]
        and q.shape[1] > 1  # a step of decoding, whose cache may be short
        and not torch.compiler.is_compiling()
    ):
        warnings.warn(
            f"k {tuple(k.shape)} is read as {k.shape[1]} tokens of {k.shape[2]} heads; the shape is {SHAPE}: "
            "if it is (batch, num_heads, seq_len, head_dim), use q.transpose(1, 2), also for k and v",
            stacklevel=4,
        )


def check_block_bias(block_bias: Tensor, q: Tensor, layout: BlockLayout) -> Tensor:
    """The bias as (batch or 1, num_heads or 1, num_active_blocks) on q's device."""
    check_option("block_bias", block_bias, block_bias)
    full = (q.shape[0], q.shape[2], layout.num_block_ids)
    bias = block_bias[(None,) * (3 - block_bias.dim())] if block_bias.dim() < 3 else block_bias
    fits = (
        bias.dim() == 3
        and bias.shape[2] == full[2]
        and bias.shape[0] in (1, full[0])
        and bias.shape[1] in (1, full[1])
    )
    if not fits or not bias.dtype.is_floating_point or bias.device != q.device:
        raise ValueError(
            f"block_bias must be floating point on {q.device} and broadcast to (batch, num_heads, num_active_blocks) = "
            f"{full}, got {block_bias.dtype} {tuple(block_bias.shape)} on {block_bias.device}"
        )
    return bias


# ---- padding


def check_kv_lengths(kv_lengths: Tensor, q: Tensor, k: Tensor, is_causal: bool, readable: bool) -> Tensor:
    """The lengths as int32 on q's device; their values are checked unless that would wait for a GPU."""
    check_option("kv_lengths", kv_lengths, q)
    batch, kv_len = k.shape[:2]
    if kv_lengths.shape != (batch,) or kv_lengths.dtype not in INT_TYPES:
        raise ValueError(
            f"kv_lengths must be int with shape ({batch},), got {kv_lengths.dtype} {tuple(kv_lengths.shape)}"
        )
    if is_causal and q.shape[1] != kv_len:
        raise ValueError(
            f"kv_lengths with is_causal=True needs q_len == kv_len, got {q.shape[1]} and {kv_len}: the last query sits at "
            "key kv_len - 1, not at the last valid key of its sequence. " + WAYS_TO_DECODE
        )
    if readable and type(kv_lengths) is Tensor and kv_lengths.device.type == "cpu" and batch:
        least, most = (int(x) for x in kv_lengths.aminmax())
        if least < 0 or most > kv_len:
            hint = transposed_hint(q, k, k, least >= 0 and most <= k.shape[2])
            raise ValueError(
                f"kv_lengths must be 0 to kv_len {kv_len}, got {least if least < 0 else most}"
                + (hint or f"; use kv_lengths.clamp(0, {kv_len}) if all keys beyond are meant")
            )
    elif kv_lengths.dtype == torch.int64:  # int32 would keep the low half
        kv_lengths = kv_lengths.clamp(0, values.MAX_TOKENS)
    return kv_lengths.to(q.device, torch.int32)


# How to decode instead, where queries would sit behind the end of their sequence.
WAYS_TO_DECODE = (
    "Call once per sequence with k[:, :length]; or fill the sequences up on the left, so that all end at the last key, and "
    "pass key_padding_mask (the rows count from the padding, so the numbers are those of the sequence alone only where "
    "whole blocks are filled up and the pattern is a local_window with a window_size)"
)


def is_padded_at_the_end(mask: Tensor) -> bool:
    """Whether a sequence is padded on the right: keys, then nothing but padding."""
    never_ends = (mask[:, 1:] >= mask[:, :-1]).all(1)
    return bool((never_ends & mask[:, -1:].any(1) & ~mask[:, :1].all(1)).any())


def check_key_padding_mask(mask: Tensor, q: Tensor, k: Tensor, is_causal: bool, readable: bool) -> Tensor:
    """The mask on q's device; its values are checked where that waits for no GPU."""
    check_option("key_padding_mask", mask, q)
    if mask.shape != k.shape[:2] or mask.dtype != torch.bool:
        hint = transposed_hint(q, k, k, mask.shape == (k.shape[0], k.shape[2]) and k.shape[1] != k.shape[2])
        raise ValueError(
            f"key_padding_mask must be bool with shape {tuple(k.shape[:2])}, True where padded, "
            f"got {mask.dtype} {tuple(mask.shape)}{hint}"
        )
    is_decoding = is_causal and q.shape[1] != k.shape[1]
    readable = readable and type(mask) is Tensor and mask.device.type == "cpu"
    if is_decoding and readable and is_padded_at_the_end(mask):
        raise ValueError(
            f"key_padding_mask with is_causal=True and q_len {q.shape[1]} != kv_len {k.shape[1]} must not be padding at the end "
            "alone, as in a sequence here: the last query sits at key kv_len - 1. " + WAYS_TO_DECODE
        )
    return mask.to(q.device)


# ---- numbers and names


def check_numbers(is_causal: object, softmax_scale: object, dropout_p: object) -> None:
    checked_scale(softmax_scale)
    checked_dropout(dropout_p)
    check_is_causal(is_causal)


def check_flag(name: str, value: object) -> None:
    if values.flag(value) is None:
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_is_causal(is_causal: object) -> None:
    if values.flag(is_causal) is None:
        fix = ""
        if isinstance(is_causal, Tensor):
            fix = "; padding goes into key_padding_mask, other masks of blocks into BlockLayout.from_dense"
        raise TypeError(f"is_causal must be True or False, got {shown(is_causal)}{fix}")


def checked_scale(softmax_scale: Any) -> float | None:
    """The scale as a float, None as it is.

    Raises:
        TypeError: no number. ValueError: infinite or nan.
    """
    if softmax_scale is None:
        return None
    scale = checked_number("softmax_scale", softmax_scale)
    if not math.isfinite(scale):
        raise ValueError(f"softmax_scale must be finite, got {scale}; None is 1 / sqrt(head_dim)")
    return scale


def checked_dropout(dropout_p: Any, name: str = "dropout_p") -> float:
    """The probability as a float.

    Raises:
        TypeError: no number. ValueError: not in [0, 1).
    """
    share = checked_number(name, dropout_p)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {shown(dropout_p)}")
    return share


def checked_number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} must be a number, got a tensor that requires grad and would get none; scale q instead"
        )
    number = values.number(value)
    if number is None:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    return number


def check_backend(backend: object) -> None:
    """Raise unless it is None or the name of a backend."""
    if backend is not None and not (isinstance(backend, str) and backend in BACKEND_NAMES):
        raise ValueError(f"backend must be one of {BACKEND_NAMES}, got {shown(backend)}")


def refusal(error: Exception, q: Any, k: Any, v: Any, is_causal: Any) -> Exception:
    """The exception for a call whose layout could not be built: what is wrong with its arguments, else the error itself."""
    try:
        check_qkv(q, k, v)
        check_tensors(q, k, v)
        check_is_causal(is_causal)
    except (TypeError, ValueError) as found:
        return found
    return error
