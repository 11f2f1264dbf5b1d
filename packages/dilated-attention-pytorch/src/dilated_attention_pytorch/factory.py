"""Attention modules by the name of a variant or a preset."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from . import values
from .adaptive_config import AdaptiveConfig
from .config import SparsePatternConfig, closest
from .distributed.config import MESH, DistributedSparseConfig
from .distributed.module import BlockSparseDistributedAttention
from .modules import BlockSparseAdaptive, BlockSparseAttention, BlockSparseMultiheadAttention
from .removed import REMOVED_PRESETS, raise_removed_variant
from .upstream.keywords import OF_ONE_CLASS, explains_old_keywords
from .values import shown

VARIANTS: dict[str, type[nn.Module]] = {
    "base": BlockSparseAttention,
    "multihead": BlockSparseMultiheadAttention,
    "adaptive": BlockSparseAdaptive,
    "distributed": BlockSparseDistributedAttention,
}
# What "auto" goes by: the first variant of which all these arguments are given, else "base".
AUTO: dict[str, tuple[str, ...]] = {
    "distributed": ("distributed_config",),
    "multihead": ("embed_dim", "num_heads"),
    "adaptive": ("adaptive_config",),
}

PRESETS = {
    "local": SparsePatternConfig("local_window", window_size=256),
    "dilated": SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1, dilation_rates=(1, 2, 4, 8)),
    "global_local": SparsePatternConfig("global_local", window_size=256, global_tokens=64),
    "ultra_sparse": SparsePatternConfig("dilated_sparse", sparsity_ratio=0.01, block_size=128),
}
ADAPTIVE_PRESETS = {"adaptive_standard": AdaptiveConfig()}


@explains_old_keywords
def get_block_sparse_preset(name: str, **overrides: Any) -> nn.Module:
    """Make the attention module of a preset.

    ``local``, ``dilated``, ``global_local`` and ``ultra_sparse`` are fixed patterns; ``adaptive_standard`` chooses its blocks
    from the content (`BlockSparseAdaptive`).

    Args:
        name: the preset.
        overrides: arguments of `create_block_sparse_attention`, which take precedence over those of the preset.

    Raises:
        ValueError: the preset is unknown or removed, or an override is out of range.
        TypeError: the module does not take an override, or an argument has the wrong type.

    Examples:
        >>> get_block_sparse_preset("ultra_sparse", sparsity_ratio=0.02).sparse_config.sparsity_ratio
        0.02
    """
    if not isinstance(name, str) or name not in (*PRESETS, *ADAPTIVE_PRESETS):
        if isinstance(name, str) and name in REMOVED_PRESETS:
            raise_removed_variant()
        raise values.wrong(
            values.text(name), f"name must be one of {(*PRESETS, *ADAPTIVE_PRESETS)}, got {shown(name)}"
        )
    given: dict[str, Any] = {"variant": "base", "sparse_config": PRESETS.get(name)}
    if name in ADAPTIVE_PRESETS:
        given = {"variant": "adaptive", "adaptive_config": ADAPTIVE_PRESETS[name]}
    return create_block_sparse_attention(**{**given, **overrides})


@explains_old_keywords
def create_adaptive_block_sparse(base_sparsity: float = 0.9, **kwargs: Any) -> BlockSparseAdaptive:
    """Make a `BlockSparseAdaptive`, which chooses its blocks from the content.

    Args:
        base_sparsity: the fraction of blocks **dropped**, of the `AdaptiveConfig`.
        kwargs: other arguments of `BlockSparseAdaptive`, but `adaptive_config`, which has its own `base_sparsity`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: the module does not take an argument, or `adaptive_config` is given.

    Examples:
        >>> create_adaptive_block_sparse(0.95, num_heads=8, head_dim=64).adaptive_config.base_sparsity
        0.95
    """
    if "adaptive_config" in kwargs:
        raise TypeError(
            "create_adaptive_block_sparse makes the adaptive_config; use "
            "create_block_sparse_attention('adaptive', adaptive_config=...), whose base_sparsity is the fraction dropped"
        )
    given = {"adaptive_config": AdaptiveConfig(base_sparsity=base_sparsity), **kwargs}
    check_arguments("adaptive", BlockSparseAdaptive, given)
    return BlockSparseAdaptive(**given)


@explains_old_keywords
def create_block_sparse_attention(
    variant: str = "auto",
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
    sparsity_ratio: float | None = None,
    block_size: int | None = None,
    adaptive_config: AdaptiveConfig | Mapping[str, Any] | None = None,
    distributed_config: DistributedSparseConfig | Mapping[str, Any] | None = None,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a block-sparse attention module.

    Args:
        variant: ``"base"``, ``"multihead"``, ``"adaptive"``, ``"distributed"``, or ``"auto"``, which chooses the variant
            from the other arguments.
        segment_lengths: distances in tokens below which the corresponding `dilation_rates` apply. Default: none.
        dilation_rates: token dilation by distance, one per segment length. Default: none.
        sparse_config: the pattern, or one per head or kv head. Default: ``SparsePatternConfig()``. A dict with the
            fields of a config may be given instead of it.
        sparsity_ratio: overrides the field of `sparse_config`.
        block_size: overrides the field of `sparse_config`.
        adaptive_config: how ``"adaptive"`` chooses blocks from the content, or a dict.
        distributed_config: the mesh over which ``"distributed"`` splits the sequence, or a dict.
        embed_dim: features of a token, of a variant with projections; of ``"adaptive"`` those of all heads together.
        num_heads: number of heads, of a variant with projections or with a scorer.
        kwargs: other arguments of the class of the variant: `BlockSparseAttention`, `BlockSparseMultiheadAttention`,
            `BlockSparseAdaptive` or `BlockSparseDistributedAttention`.

    Raises:
        ValueError: the variant is unknown or removed, or an argument is out of range.
        TypeError: the variant does not take an argument, or needs one that is missing.

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
    if not is_name or variant not in ("auto", *VARIANTS):
        raise values.wrong(
            values.text(variant), f"variant must be one of {('auto', *VARIANTS)}, got {shown(variant)}"
        )
    named = {
        "segment_lengths": segment_lengths, "dilation_rates": dilation_rates, "sparse_config": sparse_config,
        "sparsity_ratio": sparsity_ratio, "block_size": block_size, "adaptive_config": adaptive_config,
        "distributed_config": distributed_config, "embed_dim": embed_dim, "num_heads": num_heads,
    }  # fmt: skip
    given = {**{name: value for name, value in named.items() if value is not None}, **kwargs}
    made = VARIANTS[variant_for(given) if variant == "auto" else variant]
    check_arguments(variant, made, given)
    return made(**given)


@explains_old_keywords
def create_multihead_block_sparse(
    embed_dim: int, num_heads: int, sparsity_ratio: float | None = None, **kwargs: Any
) -> BlockSparseMultiheadAttention:
    """Make a `BlockSparseMultiheadAttention`.

    Args:
        embed_dim: features of a token.
        num_heads: number of heads.
        sparsity_ratio: the fraction of blocks kept; overrides the field of `sparse_config`. Default: that field.
        kwargs: other arguments of `BlockSparseMultiheadAttention`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: the class does not take an argument.

    Examples:
        >>> create_multihead_block_sparse(64, 4, 0.05, batch_first=True).sparse_config.sparsity_ratio
        0.05
    """
    given = {"embed_dim": embed_dim, "num_heads": num_heads, "sparsity_ratio": sparsity_ratio, **kwargs}
    check_arguments("multihead", BlockSparseMultiheadAttention, given)
    return BlockSparseMultiheadAttention(**given)


def variant_for(given: Mapping[str, Any]) -> str:
    """What ``"auto"`` makes of these arguments."""
    return next((name for name, needed in AUTO.items() if set(needed) <= given.keys()), "base")


def check_arguments(variant: str, made: type[nn.Module], given: Mapping[str, Any]) -> None:
    """Raise TypeError unless the class of a variant takes these arguments, and needs no others."""
    parameters = inspect.signature(made).parameters
    config_fields = {field.name for field in dataclasses.fields(SparsePatternConfig)}
    for name, value in given.items():
        if name in parameters:
            continue
        refused = f"variant={variant!r} takes no argument {name!r}"
        if name in config_fields:
            raise TypeError(
                f"{refused}, it is a field of SparsePatternConfig; "
                f"use sparse_config=SparsePatternConfig({name}={shown(value)})"
            )
        if name in OF_ONE_CLASS.get(made.__name__, {}):
            beside = " beside distributed_config" if "distributed_config" in given else ""
            raise TypeError(f"{refused}{beside}; {OF_ONE_CLASS[made.__name__][name]}")
        of_others = [other for other, its in VARIANTS.items() if name in inspect.signature(its).parameters]
        if of_others:
            needed = [need for need in required(VARIANTS[of_others[0]]) if need not in given]
            also = f", with {' and '.join(needed)}" if needed else ""
            raise TypeError(f"{refused}; use variant={of_others[0]!r}{also}, or leave it out")
        raise TypeError(f"{refused}{closest(name, parameters, 'arguments')}")
    missing = [name for name in required(made) if name not in given]
    if missing:
        raise TypeError(f"variant={variant!r} needs {' and '.join(required(made))}, got no {missing[0]}")
    if made is BlockSparseDistributedAttention and "distributed_config" not in given:
        raise TypeError(
            f"variant={variant!r} needs distributed_config; use DistributedSparseConfig(mesh), {MESH}"
        )


def required(made: type[nn.Module]) -> list[str]:
    """The arguments of a class without a default."""
    parameters = inspect.signature(made).parameters.values()
    return [
        each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
