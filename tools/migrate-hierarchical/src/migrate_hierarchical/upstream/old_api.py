"""The API of upstream's version 0.2.0: its modules, names and parameters, and what became of them."""

from __future__ import annotations

from ..removed_api import (
    FACTORY,
    FACTORY_PARAMETERS,
    FUNCTIONS,
    GET_PRESET,
    MODULE,
    PARAMETERS,
    PATTERN,
    PATTERN_PARAMETERS,
    REMOVED_CLASS,
    REMOVED_CREATE_ATTENTION,
    REMOVED_CREATE_BLOCK_SPARSE,
    REMOVED_MODULE,
    REMOVED_NAMES,
)

BASE = "BlockSparseRingDilatedAttention"
MULTIHEAD = "BlockSparseRingMultiheadDilatedAttention"
NEW_MULTIHEAD = "BlockSparseMultiheadAttention"
ADAPTIVE = "BlockSparseAdaptive"
DISTRIBUTED_CONFIG = "DistributedSparseConfig"
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
        DISTRIBUTED_CONFIG,
        FACTORY,
        CREATE_MULTIHEAD,
        GET_PRESET,
        PATTERN,
    }
)
# Names without a successor, and what to use instead.
SEVERAL_GPUS = "use BlockSparseDistributedAttention with a DeviceMesh, see docs/guides/distributed.md"
ONE_GPU = f"use {MODULE} on one GPU"
BY_DISTANCE = f"use {MODULE} with segment_lengths and dilation_rates, which gives other results"
NO_POOL = "leave it out: memory needs no pool"
NO_SEGMENTS = "leave it out: patterns have no segments to choose"
PROJECTED = f"use {NEW_MULTIHEAD}, which gives other results"
WITHOUT_SUCCESSOR = {
    "AdaptiveMemoryPool": NO_POOL,
    "AdaptiveSparsityTrainer": "the temperature of BlockSparseAdaptive is learned",
    "BlockSparseDilatedAttention": f"use {MODULE}",
    "BlockSparseOptimized": f"use {MODULE}",
    "BlockSparseRingAdvancedDistributedDilatedAttention": SEVERAL_GPUS,
    "BlockSparseRingDistributedDilatedAttention": SEVERAL_GPUS,
    "BlockSparseTorchSparse": f"use {MODULE}",
    "DilatedAttention": BY_DISTANCE,
    "DilatedTransformerDecoderLayer": "use torch.nn.TransformerDecoderLayer and convert_to_block_sparse",
    "DilatedTransformerEncoderLayer": "use torch.nn.TransformerEncoderLayer and convert_to_block_sparse",
    "DistributedImprovedDilatedAttention": SEVERAL_GPUS,
    "DistributedImprovedMultiheadDilatedAttention": SEVERAL_GPUS,
    "DistributedMultiheadDilatedAttention": SEVERAL_GPUS,
    "DistributedRingAttention": SEVERAL_GPUS,
    "DistributedSparsePattern": f"leave it out: {PATTERN} says which blocks are kept",
    "DynamicDilatedAttention": BY_DISTANCE,
    "DynamicMultiheadDilatedAttention": PROJECTED,
    "DynamicSegmentSelector": NO_SEGMENTS,
    "EnterpriseDistributedDilatedAttention": SEVERAL_GPUS,
    "HeadParallelDilatedAttention": BY_DISTANCE,
    "HilbertRingAttention": ONE_GPU,
    "ImportanceScorer": "BlockSparseAdaptive makes its scorer itself",
    "ImprovedDilatedAttention": BY_DISTANCE,
    "ImprovedDilatedAttentionV2": BY_DISTANCE,
    "ImprovedDistributedDilatedAttention": SEVERAL_GPUS,
    "ImprovedMultiheadDilatedAttention": PROJECTED,
    "LongNet": "use torch.nn.TransformerEncoder and convert_to_block_sparse",
    "MemoryPool": NO_POOL,
    "MultiheadDilatedAttention": PROJECTED,
    "PatternConfig": f"use {PATTERN}",
    "PatternOptimizer": "nothing replaces it",
    "PatternQualityAnalyzer": "use BlockLayout.stats and BlockLayout.coverage",
    "PatternType": f"use the strings of {PATTERN}.pattern_type",
    "RingAttentionConfig": NO_POOL,
    "RingBlockSparseAttention": ONE_GPU,
    "RingDilatedAttention": ONE_GPU,
    "RingDilatedAttentionCorrect": ONE_GPU,
    "RingDilatedAttentionHilbert": ONE_GPU,
    "RingDilatedAttentionHilbertGPUOptimized": ONE_GPU,
    "RingDilatedAttentionHilbertOptimized": ONE_GPU,
    "RingDilatedAttentionHybrid": ONE_GPU,
    "RingDilatedAttentionHybridOptimizedV2": ONE_GPU,
    "RingDilatedAttentionProduction": ONE_GPU,
    "RingDilatedAttentionSDPA": ONE_GPU,
    "RingDilatedAttentionV2": ONE_GPU,
    "RingDilatedAttentionV2Collective": ONE_GPU,
    "RingDilatedAttentionV2Flash": ONE_GPU,
    "RingDistributedDilatedAttention": SEVERAL_GPUS,
    "RingHilbertDilatedAttention": ONE_GPU,
    "RingMultiheadDilatedAttention": PROJECTED,
    "RingMultiheadDilatedAttentionHybrid": PROJECTED,
    "SegmentSelectionConfig": NO_SEGMENTS,
    "SparsePatternGenerator": "use BlockLayout.from_config",
    "StandardRingAttention": ONE_GPU,
    "UnifiedMemoryPool": NO_POOL,
    "create_adaptive_sparse_attention": f"use {CREATE_ADAPTIVE}",
    "create_adaptive_sparse_multihead_attention": f"use {CREATE_ADAPTIVE}",
    "create_block_sparse_multihead_attention": f"use {CREATE_MULTIHEAD}",
    "create_dilated_attention": f"use {FACTORY}, which gives other results",
    "create_dynamic_dilated_attention": f"use {FACTORY}, which gives other results",
    "create_improved_block_sparse_multihead_attention": f"use {CREATE_MULTIHEAD}",
    "create_multihead_dilated_attention": f"use {CREATE_MULTIHEAD}, which gives other results",
    "create_production_ring_attention": f"use {FACTORY}",
    "create_ring_attention": f"use {FACTORY}",
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
        "kernels",
        "long_net",
        "models",
        "multihead_dilated_attention",
        "ring",
        "simulated_ring_dilated_attention",
        "sparse",
        "transformer",
        "transformer_refactored",
        "true_ring_dilated_attention",
        "utils",
    }
)
PREFIXES = ("block_sparse_", "hilbert_", "improved_", "ring_", "sparse_pattern_")


def is_old_module(path: str) -> bool:
    """Whether a path below the package was a module of 0.2.0 that is gone, other than that of the group HIER."""
    parts = path.split(".")
    first = parts[0]
    if REMOVED_MODULE in parts or first in FUNCTIONS or parts[-1] in NAMES:
        return False
    return first in MODULES or first.startswith(PREFIXES)


# Keywords that mean nothing now. The block-sparse classes took any keyword, so they had no effect then either.
REMOVED_KEYWORDS = frozenset(
    {
        "activation_checkpointing",
        "adaptive_sparsity_rate",
        "auto_resume",
        "bucket_size",
        "cache_on_gpu",
        "checkpoint_interval",
        "communication_backend",
        "compile_model",
        "compression_ratio",
        "cpu_offload",
        "data_parallel",
        "enable_apex_optimization",
        "enable_async_communication",
        "enable_batched_ops",
        "enable_buffer_manager",
        "enable_deepspeed_integration",
        "enable_error_recovery",
        "enable_fault_tolerance",
        "enable_gradient_compression",
        "enable_hardware_opt",
        "enable_hot_cache",
        "enable_load_balancing",
        "enable_memory_pool",
        "enable_mixed_precision",
        "enable_monitoring",
        "enable_packed_comm",
        "enable_packing",
        "enable_pattern_cache",
        "enable_pinned_memory",
        "enable_profiling",
        "gamma_init",
        "global_sparsity",
        "gradient_bucket_count",
        "gradient_bucket_size_mb",
        "hilbert_chunk_size",
        "inter_node_sparsity",
        "layer_norm",
        "layer_norm_eps",
        "lightweight_pool",
        "load_balance_threshold",
        "local_sparsity",
        "log_level",
        "log_memory_usage",
        "max_cached_buffers",
        "memory_budget_gb",
        "memory_efficient",
        "memory_pool_size",
        "memory_pool_threshold_mb",
        "mixed_precision",
        "model_parallel",
        "monitoring_interval",
        "nvme_offload",
        "op",
        "overlap_communication",
        "pattern_cache_size",
        "profile_memory",
        "ring_size",
        "sequence_parallel",
        "use_8bit_optimizer",
        "use_checkpointing",
        "use_cuda_kernel",
        "use_deepspeed",
        "use_flash",
        "use_flash_attention",
        "use_flex_attention",
        "use_gradient_checkpointing",
        "use_gradient_compression",
        "use_hilbert",
        "use_layer_norm",
        "use_memory_pool",
        "use_packed_communication",
        "use_pattern_cache",
        "use_tf32",
        "use_triton",
        "use_xformers",
        "zero_stage",
    }
)
RENAMED_KEYWORDS = {"sparsity_config": "sparse_config"}  # another name that the base class took
# Keywords that have another name or place now, and had no effect on block-sparse classes.
OTHER_KEYWORDS = {
    "attention_config": "pass its fields as arguments",
    "attention_dropout": "use dropout",
    "attention_scale": "use softmax_scale",
    "attention_type": "use variant",
    "dim": "use embed_dim",
    "enable_adaptive": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "heads": "use num_heads",
    "local_window_size": "use window_size of SparsePatternConfig",
    "max_sparsity": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "min_sparsity": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "multihead_config": "pass its fields as arguments",
    "num_global_tokens": "use global_tokens of SparsePatternConfig",
    "pattern_update_frequency": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "quality_threshold": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "sparse_pattern_config": "use sparse_config",
    "use_adaptive_sparsity": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
    "use_learned_patterns": "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped",
}
# Fields of a pattern -> the patterns that take them.
TAKEN_BY = {
    "window_size": ("local_window", "global_local"),
    "global_tokens": ("global_local",),
    "dilation_rates": ("dilated_sparse",),
}
WITH_WINDOW = TAKEN_BY["window_size"]
TOKEN_DILATION = ("segment_lengths", "dilation_rates")

# What makes a module that is called with q, k and v.
MAKE_MODULES = frozenset({BASE, FACTORY, GET_PRESET})
# Members of those modules that are gone, and what to use instead.
MEMBERS = {
    "clear_caches": "use clear_cache()",
    "clear_pattern_cache": "use clear_cache()",
    "enable_batched_ops": "a call is one kernel",
    "get_memory_stats": "memory needs no pool",
    "get_pattern_stats": "use layout(seq_len).stats()",
    "memory_pool": "memory needs no pool",
    "pattern_cache": "layouts are cached for all modules",
    "ring_size": "one GPU needs no ring",
    "use_fa3": "see explain_backends",
}

# The fields of DistributedSparseConfig, all of them gone.
DISTRIBUTED_FIELDS = (
    *(
        "pattern_type",
        "sparsity_ratio",
        "block_size",
        "local_sparsity",
        "global_sparsity",
        "inter_node_sparsity",
    ),
    *("compression_ratio", "load_balance_threshold", "adaptive_sparsity_rate", "enable_async_communication"),
    *("enable_gradient_compression", "enable_load_balancing", "enable_memory_pool", "enable_pinned_memory"),
    *("gradient_bucket_size_mb", "gradient_bucket_count"),
)
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
    DISTRIBUTED_CONFIG: DISTRIBUTED_FIELDS,
    PATTERN: PATTERN_PARAMETERS,
}
# The first parameters that are still in their old places; arguments of the others are named.
STILL_IN_PLACE: dict[str, tuple[str, ...]] = {
    BASE: (),
    MULTIHEAD: ("embed_dim", "num_heads"),
    ADAPTIVE: (),
    FACTORY: FACTORY_PARAMETERS[:6],
    GET_PRESET: ("preset_name",),
    CREATE_MULTIHEAD: ("embed_dim", "num_heads", "sparsity_ratio"),
    CREATE_ADAPTIVE: ("base_sparsity",),
    DISTRIBUTED_CONFIG: (),
    PATTERN: PATTERN_PARAMETERS,
}

# What the group HIER rewrites; here only keywords that mean nothing are removed from it.
HIERARCHICAL_CALLS = (REMOVED_CLASS, REMOVED_CREATE_ATTENTION, REMOVED_CREATE_BLOCK_SPARSE)
for _name in HIERARCHICAL_CALLS:
    OLD_PARAMETERS[_name] = STILL_IN_PLACE[_name] = PARAMETERS[_name]

OLD_WINDOW = 256  # the default of window_size
SPARSEST = 0.5  # ratios from here on were meant as the fraction dropped in upstream's examples
