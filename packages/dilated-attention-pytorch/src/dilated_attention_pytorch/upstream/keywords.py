"""Keyword arguments of 0.2.0 that mean nothing here, and what their error says to write instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .names import PAGE

POOL = "delete it: memory needs no pool"
CACHE = "delete it: layouts are cached for all modules"
KERNEL = "delete it: the fastest backend that serves a call is chosen, or named by `backend`"
CHECKPOINT = (
    "delete it: the backward stores no attention weights; for whole layers use torch.utils.checkpoint"
)
AMP = "delete it: use torch.autocast, or pass tensors of the wanted dtype"
PROFILE = "delete it: use torch.profiler"
RING = "delete it: one GPU needs no ring; for several see docs/guides/distributed.md"
SHARDS = "delete it: for several GPUs see docs/guides/distributed.md"
NORM = "delete it, and put a torch.nn.LayerNorm around the module"
FIELDS = "pass its fields as arguments"
ADAPTIVE = (
    "use variant='adaptive' with adaptive_config=AdaptiveConfig(base_sparsity=...), the fraction dropped"
)
HILBERT = "delete it: there is no order along Hilbert curves"
SPARSE = "use {} of SparsePatternConfig"

# What to do about a keyword, by the keyword. Those of several GPUs are of BlockSparseRingDistributedDilatedAttention.
OLD_KEYWORDS: dict[str, str] = {
    "enable_memory_pool": POOL,
    "use_memory_pool": POOL,
    "memory_pool_size": POOL,
    "lightweight_pool": POOL,
    "enable_buffer_manager": POOL,
    "max_cached_buffers": POOL,
    "memory_efficient": "delete it: memory is linear in the sequence length",
    "enable_pinned_memory": POOL,
    "memory_pool_threshold_mb": POOL,
    "pattern_cache_size": CACHE,
    "enable_hot_cache": CACHE,
    "enable_pattern_cache": CACHE,
    "use_pattern_cache": CACHE,
    "cache_on_gpu": CACHE,
    "enable_batched_ops": "delete it: blocks are always computed together",
    "enable_packing": "delete it: blocks are always computed together",
    "use_flash_attention": KERNEL,
    "use_flash": KERNEL,
    "use_xformers": KERNEL,
    "use_flex_attention": KERNEL,
    "use_cuda_kernel": KERNEL,
    "use_triton": KERNEL,
    "enable_hardware_opt": KERNEL,
    "op": KERNEL,
    "use_tf32": "delete it: see docs/guides/precision.md",
    "mixed_precision": AMP,
    "enable_mixed_precision": AMP,
    "use_gradient_checkpointing": CHECKPOINT,
    "use_checkpointing": CHECKPOINT,
    "activation_checkpointing": CHECKPOINT,
    "compile_model": "delete it, and call torch.compile on the model",
    "enable_error_recovery": "delete it: a call that fails raises",
    "enable_profiling": PROFILE,
    "enable_monitoring": PROFILE,
    "profile_memory": PROFILE,
    "log_memory_usage": PROFILE,
    "log_level": PROFILE,
    "monitoring_interval": PROFILE,
    "ring_size": RING,
    "use_packed_communication": RING,
    "enable_packed_comm": RING,
    "overlap_communication": RING,
    "communication_backend": SHARDS,
    "enable_deepspeed_integration": SHARDS,
    "enable_apex_optimization": SHARDS,
    "use_deepspeed": SHARDS,
    "zero_stage": SHARDS,
    "cpu_offload": SHARDS,
    "nvme_offload": SHARDS,
    "use_8bit_optimizer": SHARDS,
    "use_gradient_compression": SHARDS,
    "model_parallel": SHARDS,
    "sequence_parallel": SHARDS,
    "data_parallel": SHARDS,
    "bucket_size": SHARDS,
    "enable_fault_tolerance": SHARDS,
    "checkpoint_interval": SHARDS,
    "auto_resume": SHARDS,
    "local_sparsity": SHARDS,
    "global_sparsity": SHARDS,
    "inter_node_sparsity": SHARDS,
    "compression_ratio": SHARDS,
    "load_balance_threshold": SHARDS,
    "adaptive_sparsity_rate": SHARDS,
    "enable_async_communication": SHARDS,
    "enable_gradient_compression": SHARDS,
    "enable_load_balancing": SHARDS,
    "gradient_bucket_size_mb": SHARDS,
    "gradient_bucket_count": SHARDS,
    "layer_norm": NORM,
    "use_layer_norm": NORM,
    "layer_norm_eps": NORM,
    "gamma_init": NORM,
    "multihead_config": FIELDS,
    "attention_config": FIELDS,
    "use_hilbert": HILBERT,
    "hilbert_chunk_size": HILBERT,
    "attention_scale": "use softmax_scale",
    "attention_dropout": "use dropout",
    "attention_type": "use variant",
    "preset_name": "use name",
    "dim": "use embed_dim",
    "heads": "use num_heads",
    "sparsity_config": "use sparse_config",
    "sparse_pattern_config": "use sparse_config",
    "local_window_size": SPARSE.format("window_size"),
    "num_global_tokens": SPARSE.format("global_tokens"),
    "use_adaptive_sparsity": ADAPTIVE,
    "enable_adaptive": ADAPTIVE,
    "use_learned_patterns": ADAPTIVE,
    "min_sparsity": ADAPTIVE,
    "max_sparsity": ADAPTIVE,
    "quality_threshold": ADAPTIVE,
    "pattern_update_frequency": ADAPTIVE,
    "memory_budget_gb": "delete it: memory is proportional to the active blocks",
}

Made = TypeVar("Made", bound=Callable[..., Any])


def refuse_old_keywords(given: Iterable[object], who: str) -> None:
    """Raise TypeError for keywords of 0.2.0, with what to do about each."""
    old = [name for name in given if isinstance(name, str) and name in OLD_KEYWORDS]
    if old:
        what = "".join(f"\n  {name}: {OLD_KEYWORDS[name]}" for name in old)
        raise TypeError(
            f"{who} takes no {', '.join(map(repr, old))}, of version 0.2.0:{what}\n"
            f"{PAGE} of the repository has all arguments of 0.2.0."
        )


def explains_old_keywords(made: Made) -> Made:
    """Decorator of classes and functions: keywords of 0.2.0 say what to do, not only that they are unknown."""
    called: Any = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    who = made.__name__

    @functools.wraps(called)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not OLD_KEYWORDS.keys().isdisjoint(kwargs):
            refuse_old_keywords(kwargs, who)
        return called(*args, **kwargs)

    if not isinstance(made, type):
        return checked  # type: ignore[return-value]
    made.__init__ = checked  # type: ignore[misc]
    return made
