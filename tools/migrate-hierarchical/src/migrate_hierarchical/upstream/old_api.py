"""The API of upstream's version 0.2.0: its modules, names and parameters, and what became of them."""

from __future__ import annotations

from ..removed_api import (
    FACTORY,
    FACTORY_PARAMETERS,
    FUNCTION,
    GET_PRESET,
    MODULE,
    PATTERN,
    PATTERN_PARAMETERS,
    REMOVED_MODULE,
    REMOVED_NAMES,
)

BASE = "BlockSparseRingDilatedAttention"
MULTIHEAD = "BlockSparseRingMultiheadDilatedAttention"
NEW_MULTIHEAD = "BlockSparseMultiheadAttention"
ADAPTIVE = "BlockSparseAdaptive"
CREATE_MULTIHEAD = "create_multihead_block_sparse"
CREATE_ADAPTIVE = "create_adaptive_block_sparse"

# Name then -> name now.
RENAMED = {BASE: MODULE, MULTIHEAD: NEW_MULTIHEAD}
# The same name then and now.
CARRIED_OVER = frozenset(
    {
        ADAPTIVE,
        "AdaptiveConfig",
        CREATE_ADAPTIVE,
        FACTORY,
        CREATE_MULTIHEAD,
        GET_PRESET,
        PATTERN,
    }
)
# Names without a successor, and what to use instead.
WITHOUT_SUCCESSOR = {
    "AdaptiveSparsityTrainer": "set temperature of BlockSparseAdaptive during training",
    "BlockSparseOptimized": f"use {MODULE}",
    "BlockSparseRingDistributedDilatedAttention": f"use {MODULE} on one GPU",
    "BlockSparseTorchSparse": f"use {MODULE}",
    "DilatedAttention": f"use {MODULE} with segment_lengths and dilation_rates, which gives other results",
    "DilatedTransformerDecoderLayer": f"use torch.nn.TransformerDecoderLayer with {NEW_MULTIHEAD}",
    "DilatedTransformerEncoderLayer": f"use torch.nn.TransformerEncoderLayer with {NEW_MULTIHEAD}",
    "DistributedSparseConfig": "no replacement",
    "DistributedSparsePattern": "no replacement",
    "ImportanceScorer": "part of BlockSparseAdaptive",
    "ImprovedDilatedAttention": f"use {MODULE} with segment_lengths and dilation_rates, which gives other results",
    "ImprovedMultiheadDilatedAttention": f"use {NEW_MULTIHEAD}, which gives other results",
    "LongNet": f"no replacement; use torch.nn.TransformerEncoder with {NEW_MULTIHEAD}",
    "MultiheadDilatedAttention": f"use {NEW_MULTIHEAD}, which gives other results",
    "PatternConfig": f"use {PATTERN}",
    "PatternOptimizer": "no replacement",
    "PatternQualityAnalyzer": "use BlockLayout.stats and BlockLayout.coverage",
    "PatternType": f"use the strings of {PATTERN}.pattern_type",
    "RingAttentionConfig": "no replacement: memory needs no pool",
    "RingDilatedAttention": f"use {MODULE} on one GPU",
    "RingDilatedAttentionProduction": f"use {MODULE} on one GPU",
    "SparsePatternGenerator": "use BlockLayout.from_config",
    "create_adaptive_sparse_attention": f"use {CREATE_ADAPTIVE}",
    "create_dilated_attention": f"use {FACTORY} with segment_lengths and dilation_rates, which gives other results",
    "create_multihead_dilated_attention": f"use {CREATE_MULTIHEAD}, which gives other results",
    "create_production_ring_attention": f"use {FACTORY}",
}
NAMES = frozenset({*RENAMED, *CARRIED_OVER, *WITHOUT_SUCCESSOR})
# Names that the package still has, or that the group HIER migrates: they can be imported from the package itself.
AT_THE_ROOT = frozenset({*RENAMED, *CARRIED_OVER, *REMOVED_NAMES})

# The modules that are gone, without the one of the group HIER.
MODULES = frozenset(
    {
        "base",
        "core",
        "dilated_attention",
        "distributed_dilated_attention",
        "distributed_memory_optimization",
        "distributed_sparse_config",
        "dynamic_dilated_attention",
        "head_parallel_dilated_attention_optimized",
        "improved_dilated_attention",
        "improved_multihead_dilated_attention",
        "kernels",
        "long_net",
        "models",
        "multihead_dilated_attention",
        "ring",
        "ring_attention_lse",
        "ring_attention_utils",
        "sparse",
        "sparse_pattern_generator",
        "transformer",
        "utils",
    }
)
PREFIXES = ("block_sparse_", "ring_dilated_attention", "ring_distributed_", "hilbert_")


def is_old_module(path: str) -> bool:
    """Whether a path below the package was a module of 0.2.0 that is gone, other than that of the group HIER."""
    parts = path.split(".")
    first = parts[0]
    if REMOVED_MODULE in parts or first == FUNCTION or parts[-1] in NAMES:
        return False
    return first in MODULES or first.startswith(PREFIXES)


# Keywords that mean nothing now. Most of them had no effect then either: the classes took any keyword.
REMOVED_KEYWORDS = frozenset(
    {
        "enable_apex_optimization",
        "enable_async_communication",
        "enable_batched_ops",
        "enable_deepspeed_integration",
        "enable_error_recovery",
        "enable_gradient_compression",
        "enable_hardware_opt",
        "enable_hot_cache",
        "enable_memory_pool",
        "enable_packed_comm",
        "enable_profiling",
        "lightweight_pool",
        "log_memory_usage",
        "memory_efficient",
        "memory_pool_size",
        "mixed_precision",
        "monitoring_interval",
        "pattern_cache_size",
        "ring_size",
        "use_flash_attention",
        "use_gradient_checkpointing",
        "use_memory_pool",
        "use_pattern_cache",
        "use_tf32",
        "use_triton",
    }
)
RENAMED_KEYWORDS = {"sparsity_config": "sparse_config"}  # another name that the base class took
TOKEN_DILATION = ("segment_lengths", "dilation_rates")

# The old parameters of what can be called, in their order.
OLD_PARAMETERS: dict[str, tuple[str, ...]] = {
    BASE: (*TOKEN_DILATION, "sparse_config", "enable_batched_ops", "pattern_cache_size"),
    MULTIHEAD: (
        "embed_dim",
        "num_heads",
        *TOKEN_DILATION,
        "dropout",
        "bias",
        "sparse_config",
        "batch_first",
    ),
    ADAPTIVE: (*TOKEN_DILATION, "num_heads", "head_dim", "adaptive_config"),
    FACTORY: FACTORY_PARAMETERS,
    GET_PRESET: ("preset_name",),
    CREATE_MULTIHEAD: ("embed_dim", "num_heads", "sparsity_ratio"),
    CREATE_ADAPTIVE: ("base_sparsity",),
    PATTERN: PATTERN_PARAMETERS,
}
# The first parameters that are still in their old places; arguments of the others are named.
STILL_IN_PLACE: dict[str, tuple[str, ...]] = {
    BASE: (),
    MULTIHEAD: ("embed_dim", "num_heads"),
    ADAPTIVE: (),
    FACTORY: FACTORY_PARAMETERS[:6],
    GET_PRESET: ("preset_name",),
    CREATE_MULTIHEAD: ("embed_dim", "num_heads"),
    CREATE_ADAPTIVE: ("base_sparsity",),
    PATTERN: PATTERN_PARAMETERS,
}

OLD_WINDOW = 256  # the default of window_size
SPARSEST = 0.5  # ratios from here on were meant as the fraction dropped in upstream's examples
