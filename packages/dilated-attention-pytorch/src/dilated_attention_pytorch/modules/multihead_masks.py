"""The arguments of nn.MultiheadAttention.forward: their checks, with its wording, and its masks as ours."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch_internals import check_multihead_shapes


class Masks(NamedTuple):
    """What hides keys, or is added to scores."""

    padding: Tensor | None = None
    """bool (batch, kv_len), True is padding."""
    bias: Tensor | None = None
    """(batch or 1, num_heads or 1, q_len or 1, kv_len), floating point."""

    def of_keys(self, n_keys: int) -> Masks:
        """The masks of the first keys, or of as many more that they do not touch."""
        padding, bias = self
        return Masks(*(None if x is None else first_or_more(x, -1, n_keys) for x in (padding, bias)))


def first_or_more(x: Tensor, dim: int, size: int) -> Tensor:
    """The first elements along a dimension, or all and zeros behind them."""
    more = size - x.shape[dim]
    if more <= 0:
        return x.narrow(dim, 0, size)
    shape = list(x.shape)
    shape[dim] = more
    return torch.cat([x, x.new_zeros(shape)], dim)


def check_types_of_masks(attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> None:
    """Raise AssertionError unless masks are bool or floating point; warn where one is bool and the other is not."""
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise AssertionError(f"only bool and floating types of {name} are supported, got {mask.dtype}")
    if key_padding_mask is not None and attn_mask is not None and key_padding_mask.dtype != attn_mask.dtype:
        warnings.warn(
            "Support for mismatched key_padding_mask and attn_mask is deprecated. Use same type for both instead.",
            stacklevel=4,
        )


def check_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    num_heads: int,
    embed_dim: int,
    same_dims: bool,
) -> bool:
    """Raise AssertionError for tensors that do not fit together; whether they have a batch dimension."""
    is_batched = check_multihead_shapes(query, key, value, key_padding_mask, attn_mask, num_heads)
    if query.shape[-1] != embed_dim:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim}, but got {query.shape[-1]}")
    if same_dims and key.shape != value.shape:
        raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
    if key.shape[:-1] != value.shape[:-1]:
        raise AssertionError(
            f"key's sequence and batch dims {key.shape[:-1]} do not match value's {value.shape[:-1]}"
        )
    return is_batched


def masks_of(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor, dtype: torch.dtype
) -> Masks:
    """The masks of a call of nn.MultiheadAttention.

    Both together make one of (batch, 1, q_len, kv_len), unless the padding is bool.

    Args:
        attn_mask: (q_len, kv_len) or (batch * num_heads, q_len, kv_len), bool with True for what is hidden, or added.
        key_padding_mask: (batch, kv_len), or (kv_len,) of a call without batch, likewise.
        q: (batch, q_len, num_heads, head_dim).
        k: (batch, kv_len, num_heads, head_dim).
        dtype: of a bool `attn_mask` as numbers.
    """
    (batch, q_len, num_heads, _), kv_len = q.shape, k.shape[1]
    bias = None
    if attn_mask is not None:
        check_shape_of_attn_mask(attn_mask, batch * num_heads, q_len, kv_len)
        bias = attn_mask.unflatten(0, (batch, num_heads)) if attn_mask.dim() == 3 else attn_mask[None, None]
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=dtype).masked_fill(bias, -torch.inf)
    if key_padding_mask is None:
        return Masks(bias=fitting(bias, q))
    of_keys = key_padding_mask if key_padding_mask.dim() == 2 else key_padding_mask[None]
    for dim, size in enumerate((batch, kv_len)):
        if of_keys.shape[dim] != size:
            raise AssertionError(
                f"Expected key_padded_mask.shape[{dim}] to be {size}, but got {of_keys.shape[dim]}"
            )
    if of_keys.dtype == torch.bool:
        return Masks(of_keys, fitting(bias, q))
    of_keys = of_keys[:, None, None]
    return Masks(bias=fitting(of_keys if bias is None else bias + of_keys, q))


def check_shape_of_attn_mask(attn_mask: Tensor, n_batch_heads: int, q_len: int, kv_len: int) -> None:
    expected = (q_len, kv_len) if attn_mask.dim() == 2 else (n_batch_heads, q_len, kv_len)
    if attn_mask.shape != expected:
        raise RuntimeError(
            f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {expected}."
        )


def fitting(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """The bias in a type that attention takes."""
    return bias if bias is None or bias.dtype in (q.dtype, torch.float32) else bias.to(q.dtype)
