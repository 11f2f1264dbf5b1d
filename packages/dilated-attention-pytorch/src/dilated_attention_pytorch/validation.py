"""The checks of an attention call: every message names the argument, its value and what would do."""

from __future__ import annotations

import math

from torch import Tensor

from .patterns.layout import BlockLayout


def check_numbers(is_causal: object, softmax_scale: object, dropout_p: object) -> None:
    for name, value in (("softmax_scale", softmax_scale), ("dropout_p", dropout_p)):
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(
                f"{name} must be a number, got a tensor that requires grad and would get none; scale q instead"
            )
        if not is_number(value) and (value is not None or name == "dropout_p"):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if softmax_scale is not None and not math.isfinite(softmax_scale):  # type: ignore[arg-type]
        raise ValueError(f"softmax_scale must be finite, got {softmax_scale}; None is 1 / sqrt(head_dim)")
    if not is_number(is_causal) or is_causal not in (True, False):
        raise TypeError(f"is_causal must be True or False, got {is_causal!r}")


def is_number(value: object) -> bool:
    """Whether Python makes a float of it that is meant as one."""
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return not isinstance(value, (str, bytes, bytearray))


def check_are_tensors(**arguments: object) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and (value is not None or name in ("q", "k", "v")):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; use torch.tensor(...)")


def fit_together(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """The conditions of `check_tensors` in one expression: a call in a training loop should not pay for the messages."""
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
        and of_q[2] % of_k[2] == 0
    )


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if fit_together(q, k, v):
        return
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be (batch, seq_len, num_heads, head_dim), got shape {tuple(tensor.shape)}"
            )
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} must be a floating point tensor, got {tensor.dtype}")
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
    if q.shape[3] == 0:
        raise ValueError("head_dim must be at least 1, got q with head_dim 0")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have q's head_dim {q.shape[3]}, got {k.shape[3]}")
    if v.shape[1:3] != k.shape[1:3]:
        raise ValueError(
            f"v must have k's seq_len and num_heads {tuple(k.shape[1:3])}, got {tuple(v.shape[1:3])}"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"num_kv_heads must divide num_heads {q.shape[2]}, got {k.shape[2]}")


def check_layout(q: Tensor, k: Tensor, layout: BlockLayout, is_causal: bool) -> None:
    if not isinstance(layout, BlockLayout):
        raise ValueError(
            f"layout must be a BlockLayout, got {type(layout).__name__}; make one with BlockLayout.from_config"
        )
    if (layout.q_len, layout.kv_len) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"layout is for q_len {layout.q_len} and kv_len {layout.kv_len}, but q has {q.shape[1]} and k {k.shape[1]} tokens"
        )
    if q.shape[1] != k.shape[1] and layout.causal != is_causal:
        raise ValueError(
            f"is_causal={is_causal} with q_len {q.shape[1]} != kv_len {k.shape[1]} needs a layout made with "
            f"causal={is_causal}, got causal={layout.causal}"
        )
    if layout.num_heads not in (1, k.shape[2], q.shape[2]):
        raise ValueError(
            f"layout must have 1 head, num_kv_heads {k.shape[2]} or num_heads {q.shape[2]}, got {layout.num_heads}"
        )


def check_block_bias(block_bias: Tensor, q: Tensor, layout: BlockLayout) -> Tensor:
    """The bias as (batch or 1, num_heads or 1, num_active_blocks) on q's device."""
    full = (q.shape[0], q.shape[2], layout.num_active_blocks)
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
