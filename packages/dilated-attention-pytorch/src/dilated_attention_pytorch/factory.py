"""Attention modules by the name of a variant or a preset."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from .config import SparsePatternConfig, closest
from .modules import BlockSparseAttention
from .removed import REMOVED_PRESETS, raise_removed_variant
from .values import shown

VARIANTS = ("auto", "base")

PRESETS = {
    "local": SparsePatternConfig("local_window", window_size=256),
    "dilated": SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1, dilation_rates=(1, 2, 4, 8)),
    "global_local": SparsePatternConfig("global_local", window_size=256, global_tokens=64),
    "ultra_sparse": SparsePatternConfig("dilated_sparse", sparsity_ratio=0.01, block_size=128),
}


def get_block_sparse_preset(name: str, **overrides: Any) -> nn.Module:
    """Make the attention module of a preset: ``local``, ``dilated``, ``global_local`` or ``ultra_sparse``.

    Args:
        name: the preset.
        overrides: arguments of `create_block_sparse_attention`, which take precedence over those of the preset.

    Raises:
        ValueError: the preset is unknown or removed, or an override is out of range.
        TypeError: the module does not take an override.

    Examples:
        >>> get_block_sparse_preset("ultra_sparse", sparsity_ratio=0.02).sparse_config.sparsity_ratio
        0.02
    """
    if not isinstance(name, str) or name not in PRESETS:
        if isinstance(name, str) and name in REMOVED_PRESETS:
            raise_removed_variant()
        raise ValueError(f"name must be one of {tuple(PRESETS)}, got {shown(name)}")
    return create_block_sparse_attention(**{"variant": "base", "sparse_config": PRESETS[name], **overrides})


def create_block_sparse_attention(
    variant: str = "auto",
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
    sparsity_ratio: float | None = None,
    block_size: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a block-sparse attention module.

    Args:
        variant: ``"base"``, or ``"auto"``, which chooses the variant from the other arguments.
        segment_lengths: distances in tokens below which the corresponding `dilation_rates` apply. Default: none.
        dilation_rates: token dilation by distance, one per segment length. Default: none.
        sparse_config: the pattern, or one per head or kv head. Default: ``SparsePatternConfig()``. A dict with the
            fields of a config may be given instead of it.
        sparsity_ratio: overrides the field of `sparse_config`.
        block_size: overrides the field of `sparse_config`.
        kwargs: `dropout`, `softmax_scale`, `backend`, `device`, `dtype` of `BlockSparseAttention`.

    Raises:
        ValueError: the variant is unknown or removed, or an argument is out of range.
        TypeError: the variant does not take an argument.

    Examples:
        >>> model = create_block_sparse_attention(
        ...     variant="base",
        ...     segment_lengths=[2048],
        ...     dilation_rates=[1],
        ...     sparse_config=SparsePatternConfig(
        ...         pattern_type="dilated_sparse",
        ...         sparsity_ratio=0.01,  # keeps 1% of the blocks, at least 2 per row (causal: 3)
        ...         dilation_rates=[1, 2, 4, 8],  # distances in blocks; sparse rows share them out
        ...     ),
        ... )
        >>> type(model).__name__
        'BlockSparseAttention'
    """
    is_name = isinstance(variant, str)
    if (is_name and variant == "hierarchical") or "hierarchical_config" in kwargs:
        raise_removed_variant()
    if not is_name or variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {shown(variant)}")
    parameters = inspect.signature(BlockSparseAttention).parameters
    config_fields = {field.name for field in dataclasses.fields(SparsePatternConfig)}
    for name in kwargs:
        if name in config_fields - parameters.keys():
            raise TypeError(
                f"variant={variant!r} takes no argument {name!r}, it is a field of SparsePatternConfig; "
                f"use sparse_config=SparsePatternConfig({name}={shown(kwargs[name])})"
            )
        if name not in parameters:
            raise TypeError(
                f"variant={variant!r} takes no argument {name!r}{closest(name, parameters, 'arguments')}"
            )
    return BlockSparseAttention(
        sparse_config,
        segment_lengths,
        dilation_rates,
        sparsity_ratio=sparsity_ratio,
        block_size=block_size,
        **kwargs,
    )
