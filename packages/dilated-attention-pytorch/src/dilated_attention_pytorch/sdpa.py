"""block_sparse_sdpa: block-sparse attention with the arguments of torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import values
from .config import SparsePatternConfig, checked_configs
from .eager import is_plain_eager
from .functional import block_sparse_attention, run_operator
from .layout.cache import LAYOUTS, Pattern
from .layout.configs import configs_as_text
from .layout.layout import BlockLayout
from .upstream.neighbours import refuse_unknown
from .validation.call import check_call
from .validation.numbers import check_flag

SHAPE = "(batch, ..., num_heads, seq_len, head_dim)"


def block_sparse_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    layout: BlockLayout | None = None,
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
    backend: str | None = None,
    deterministic: bool | None = None,
    **unknown: Any,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` over the active blocks of a layout.

    Positions are those of PyTorch's function: query i is at i also if `is_causal` (`block_sparse_attention` has the last
    query at the last key). A query that may see no key gets 0. At a ratio of 1 the results are equal.

    Args:
        query: (batch, ..., num_heads, q_len, head_dim), at least three axes. Those before the heads are broadcast between
            query, key and value.
        key: (batch, ..., num_kv_heads, kv_len, head_dim).
        value: (batch, ..., num_kv_heads, kv_len, v_head_dim).
        attn_mask: bool, True where a query **sees** a key, or floating point, added to the scores; broadcastable to
            (batch, ..., num_heads, q_len, kv_len). A bool mask of keys alone, with a length of 1 for heads and queries, takes
            no memory; every other one that of dense scores where it is not 1. No gradient, but with ``backend="reference"``.
        dropout_p: probability with which an attention weight is dropped, also in evaluation.
        is_causal: no query sees a key at a later position. Unlike PyTorch's function it takes an `attn_mask` beside it.
        scale: default ``1 / sqrt(head_dim)``.
        enable_gqa: num_kv_heads may divide num_heads.
        layout: which blocks are active, for these lengths or longer ones.
        sparse_config: instead of a layout, the pattern of all heads, or a sequence with one per head or kv head. Its layout is
            built at first use and kept, as by `BlockSparseAttention`.
        backend: see `block_sparse_attention`.
        deterministic: see `block_sparse_attention`.

    Returns:
        (batch, ..., num_heads, q_len, v_head_dim).

    Raises:
        ValueError: an argument does not fit the others, or neither or both of `layout` and `sparse_config` are given.
        TypeError: an argument has the wrong type; the message names it.

    Examples:
        >>> query = key = value = torch.randn(1, 4, 256, 32)
        >>> out = block_sparse_sdpa(query, key, value, sparse_config=SparsePatternConfig(sparsity_ratio=1.0))
        >>> dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> torch.allclose(out, dense, atol=1e-5)
        True
    """
    if unknown:
        refuse_unknown(unknown, "block_sparse_sdpa")
    lead = checked_lead(query, key, value, enable_gqa)
    q, k, v = (with_lead(x, lead).reshape(-1, *x.shape[-3:]).transpose(1, 2) for x in (query, key, value))
    if (layout is None) == (sparse_config is None):
        given = "neither" if layout is None else "both"
        raise ValueError(
            f"layout or sparse_config says which blocks are active, got {given}; pass e.g. "
            "sparse_config=SparsePatternConfig(sparsity_ratio=0.1)"
        )
    q_len, kv_len = q.shape[1], k.shape[1]
    kv_lengths = None
    if sparse_config is not None and is_causal and q_len != kv_len:
        # the pattern of the queries' positions; keys behind them are not seen, keys that it lacks do not count
        k, v = (with_length(x, q_len) for x in (k, v))
        if kv_len < q_len:
            kv_lengths = torch.full((q.shape[0],), kv_len, dtype=torch.int32, device=q.device)
    masks = masks_of(attn_mask, lead, q, kv_len, k.shape[1])
    options: dict[str, Any] = {
        "is_causal": is_causal, "softmax_scale": scale, "dropout_p": dropout_p, "kv_lengths": kv_lengths,
        "attn_bias": masks.attn_bias, "key_padding_mask": masks.key_padding_mask,
        "deterministic": deterministic,
    }  # fmt: skip
    if layout is None:
        pattern = pattern_of(sparse_config)
        if not is_plain_eager() or q.is_meta:
            call = check_call(q, k, v, pattern, backend=backend, **options)
            out, _ = run_operator(call, pattern, backend)
            return of_lead(out.transpose(1, 2), lead)
        check_flag("is_causal", is_causal)
        layout = LAYOUTS.find(pattern, q_len, k.shape[1], bool(is_causal), q.device)
    elif is_causal:
        options["q_offset"] = 0
    out = block_sparse_attention(q, k, v, layout, backend=backend, **options)
    return of_lead(out.transpose(1, 2), lead)


def checked_lead(query: Any, key: Any, value: Any, enable_gqa: bool) -> torch.Size:
    """The leading axes of all three; raises unless their shapes fit but for the numbers that `check_call` compares."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor {SHAPE}, got {values.shown(x)}")
        if x.is_nested or x.dim() < 3:
            got = "a nested tensor" if x.is_nested else f"shape {tuple(x.shape)}"
            fix = f"; use {name}[None], one head" if not x.is_nested and x.dim() == 2 else ""
            raise ValueError(f"{name} must be {SHAPE}, at least three axes, got {got}{fix}")
    if query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ValueError(
            f"enable_gqa=False needs as many heads of key as of query, {query.shape[-3]}, got {key.shape[-3]}; pass "
            "enable_gqa=True"
        )
    lead: torch.Size = query.shape[:-3]
    if lead == key.shape[:-3] == value.shape[:-3]:
        return lead
    for name, x in (("key", key), ("value", value)):
        its = x.shape[:-3]
        if any(1 != a != b != 1 for a, b in zip(reversed(its), reversed(lead))):
            raise ValueError(
                f"{name} must be {SHAPE} with axes before num_heads that broadcast with {tuple(lead)}, got shape "
                f"{tuple(x.shape)}"
            )
        lead = torch.broadcast_shapes(lead, its)
    return lead


def with_lead(x: Tensor, lead: torch.Size) -> Tensor:
    """The tensor with these leading axes, which take no memory where it has 1."""
    return x if x.shape[:-3] == lead else x.expand(*lead, *x.shape[-3:])


def with_length(x: Tensor, length: int) -> Tensor:
    """The first tokens of (batch, seq_len, heads, head_dim), or zeros behind them."""
    missing = length - x.shape[1]
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, :length]


def of_lead(out: Tensor, lead: torch.Size) -> Tensor:
    """The tensor with the leading axes of the arguments."""
    return out if len(lead) == 1 else out.reshape(*lead, *out.shape[1:])


def pattern_of(sparse_config: Any) -> Pattern:
    """The pattern of a config or a sequence of them; a constant of compiled graphs."""
    if torch.compiler.is_compiling():
        one = isinstance(sparse_config, SparsePatternConfig)
        configs = (sparse_config,) if one else tuple(sparse_config)
        if not all(isinstance(config, SparsePatternConfig) for config in configs):
            raise TypeError(
                "sparse_config must be a SparsePatternConfig or a sequence of them inside of torch.compile; make it outside"
            )
        return Pattern(configs_as_text(configs), configs[0].block_size, len(configs))
    return kept_pattern(checked_configs(sparse_config))


@lru_cache(maxsize=256)
def kept_pattern(configs: SparsePatternConfig | tuple[SparsePatternConfig, ...]) -> Pattern:
    return Pattern.of(configs)


class Masks(NamedTuple):
    """A mask of PyTorch's function as `block_sparse_attention` takes it."""

    attn_bias: Tensor | None = None
    key_padding_mask: Tensor | None = None


def masks_of(attn_mask: Any, lead: torch.Size, q: Tensor, kv_len: int, padded_len: int) -> Masks:
    """The mask for q (batch, q_len, num_heads, head_dim) and kv_len keys, of which `padded_len` are left or made."""
    if attn_mask is None:
        return Masks()
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a tensor or None, got {values.shown(attn_mask)}")
    full = (*lead, q.shape[2], q.shape[1], kv_len)
    shape = tuple(attn_mask.shape)
    given = (1,) * (len(full) - len(shape)) + shape
    is_number = attn_mask.dtype == torch.bool or attn_mask.is_floating_point()
    if not is_number or len(given) != len(full) or any(a not in (1, b) for a, b in zip(given, full)):
        raise ValueError(
            f"attn_mask must be bool or floating point, broadcastable to {full}, got {attn_mask.dtype} {shape}"
        )
    mask = attn_mask.reshape(given)
    if len(lead) != 1:
        own = 1 if all(size == 1 for size in given[: len(lead)]) else q.shape[0]
        mask = mask.expand(*(lead if own > 1 else given[: len(lead)]), *given[-3:]).reshape(own, *given[-3:])
    if padded_len != kv_len and mask.shape[3] > 1:
        missing = padded_len - kv_len
        mask = torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask[..., :padded_len]
    return masks_of_four_axes(mask, q, padded_len)


def masks_of_four_axes(mask: Tensor, q: Tensor, kv_len: int) -> Masks:
    """A mask (batch or 1, heads or 1, q_len or 1, kv_len or 1) as `block_sparse_attention` takes it."""
    if mask.dtype != torch.bool:
        return Masks(attn_bias=mask)
    if mask.shape[1] == mask.shape[2] == 1:
        return Masks(key_padding_mask=~mask[:, 0, 0].expand(q.shape[0], kv_len))
    return Masks(attn_bias=torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf))
