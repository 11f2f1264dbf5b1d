"""What changes the scores: block_bias, attn_bias, alibi_slopes and sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout.layout import BlockLayout
from ..values import DTYPES
from .tensors import check_option


def check_block_bias(
    block_bias: Tensor, q: Tensor, layout: BlockLayout, n_sequences: int, axis: str
) -> Tensor:
    """The bias as (n_sequences or 1, num_heads or 1, num_block_ids) on q's device; `axis` is the name of the first."""
    check_option("block_bias", block_bias, block_bias)
    full = (n_sequences, q.shape[2], layout.num_block_ids)
    bias = as_three_axes(block_bias)
    fits = (
        bias.dim() == 3
        and bias.shape[2] == full[2]
        and bias.shape[0] in (1, full[0])
        and bias.shape[1] in (1, full[1])
    )
    if not fits or bias.dtype not in DTYPES or bias.device != q.device:
        raise ValueError(
            f"block_bias must be floating point on {q.device} and broadcast to ({axis}, num_heads, layout.num_block_ids) "
            f"= {full}, got {block_bias.dtype} {tuple(block_bias.shape)} on {block_bias.device}"
        )
    return bias


def as_three_axes(block_bias: Tensor) -> Tensor:
    """The bias with the first axes that are not given."""
    return block_bias[(None,) * (3 - block_bias.dim())] if block_bias.dim() < 3 else block_bias


def check_attn_bias(attn_bias: Tensor, q: Tensor, k: Tensor, backend: str | None) -> Tensor:
    """The bias as (batch or 1, num_heads or 1, q_len, kv_len) on q's device, with stride 0 where it is broadcast."""
    check_option("attn_bias", attn_bias, q)
    if attn_bias.dtype == torch.bool:
        raise ValueError(
            "attn_bias must be floating point, got torch.bool; a mask of tokens goes into the layout, "
            "BlockLayout.from_mask(mask), and padding into kv_lengths or key_padding_mask"
        )
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    bias = attn_bias[(None,) * (4 - attn_bias.dim())] if attn_bias.dim() < 4 else attn_bias
    fits = bias.dim() == 4 and all(
        size == 1 or size == wanted for size, wanted in zip(bias.shape, full, strict=True)
    )
    if not fits or bias.dtype not in (q.dtype, torch.float32) or bias.device != q.device:
        dtypes = "torch.float32" if q.dtype == torch.float32 else f"{q.dtype} or torch.float32"
        fix = "" if bias.dtype in (q.dtype, torch.float32) else f"; use attn_bias.to({q.dtype})"
        raise ValueError(
            f"attn_bias must be {dtypes} on {q.device} and broadcast to (batch, num_heads, q_len, kv_len) = {full}, got "
            f"{attn_bias.dtype} {tuple(attn_bias.shape)} on {attn_bias.device}{fix}"
        )
    if attn_bias.requires_grad and torch.is_grad_enabled() and backend != "reference":
        raise ValueError(
            "attn_bias requires grad, but would get no gradient; pass attn_bias.detach(), a block_bias, which is "
            "differentiable, or backend='reference', which gives it"
        )
    return bias.expand(-1, -1, full[2], full[3])


def check_per_head(name: str, value: Tensor, q: Tensor) -> Tensor:
    """A floating point tensor (num_heads,) on q's device."""
    check_option(name, value, q)
    if value.shape != (q.shape[2],) or not value.dtype.is_floating_point or value.device != q.device:
        fix = "" if value.dtype.is_floating_point else f"; use {name}.float()"
        raise ValueError(
            f"{name} must be floating point with shape (num_heads,) = ({q.shape[2]},) on {q.device}, got {value.dtype} "
            f"{tuple(value.shape)} on {value.device}{fix}"
        )
    return value


def check_alibi_slopes(alibi_slopes: Tensor, q: Tensor) -> Tensor:
    """The slopes as float32."""
    check_per_head("alibi_slopes", alibi_slopes, q)
    if alibi_slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "alibi_slopes requires grad, but would get no gradient; pass alibi_slopes.detach(), or what is learned as a "
            "block_bias, which is differentiable"
        )
    return alibi_slopes.float()
