"""Variant and preset names -> modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from .config import SparsePatternConfig
from .modules import BlockSparseAttention
from .removed import REMOVED_PRESETS, raise_removed_variant

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
        overrides: arguments of `create_block_sparse_attention` that replace or complete the preset's.

    Raises:
        ValueError: an unknown or removed preset, or an override out of its range.
        TypeError: an override that the module does not take.

    Example:
        >>> get_block_sparse_preset("ultra_sparse", sparsity_ratio=0.02).sparse_config.sparsity_ratio
        0.02
    """
    if name in REMOVED_PRESETS:
        raise_removed_variant()
    if name not in PRESETS:
        raise ValueError(f"name must be one of {tuple(PRESETS)}, got {name!r}")
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
        variant: ``"base"``, or ``"auto"``, which picks the variant from the other arguments.
        segment_lengths, dilation_rates: token dilation by distance (in tokens, in keys); default none.
        sparse_config: the pattern, or one per head or kv head; default ``SparsePatternConfig()``.
        sparsity_ratio, block_size: shorthands that replace the fields of that name in `sparse_config`.
        kwargs: `dropout`, `softmax_scale`, `backend`, `device`, `dtype` of `BlockSparseAttention`.

    Raises:
        ValueError: an unknown or removed variant, or an argument out of its range.
        TypeError: an argument that the variant does not have.

    Example:
        >>> model = create_block_sparse_attention(
        ...     variant="base",
        ...     segment_lengths=[2048],
        ...     dilation_rates=[1],
        ...     sparse_config=SparsePatternConfig(
        ...         pattern_type="dilated_sparse",
        ...         sparsity_ratio=0.01,  # 99% sparse
        ...         dilation_rates=[1, 2, 4, 8],  # Multi-scale coverage
        ...     ),
        ... )
        >>> type(model).__name__
        'BlockSparseAttention'
    """
    if variant == "hierarchical" or "hierarchical_config" in kwargs:
        raise_removed_variant()
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    return BlockSparseAttention(
        with_shorthands(sparse_config, sparsity_ratio, block_size), segment_lengths, dilation_rates, **kwargs
    )


def with_shorthands(
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None,
    sparsity_ratio: float | None,
    block_size: int | None,
) -> SparsePatternConfig | Sequence[SparsePatternConfig]:
    """The config, with the fields replaced that were given beside it."""
    given = {"sparsity_ratio": sparsity_ratio, "block_size": block_size}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if sparse_config is None:
        return SparsePatternConfig(**changes)
    if not changes:
        return sparse_config
    if isinstance(sparse_config, SparsePatternConfig):
        return dataclasses.replace(sparse_config, **changes)
    return [dataclasses.replace(config, **changes) for config in sparse_config]
