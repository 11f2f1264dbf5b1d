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
RING = "delete it: one GPU needs no ring, and over several variant='distributed' sends only the blocks that are needed"
GROUP = "delete it: the process group of the mesh decides"
OVERLAP = "delete it: exchanges overlap with the attention, see stages of DistributedSparseConfig"
BALANCE = "delete it: balance of DistributedSparseConfig says how rows are shared out"
ONE_PATTERN = "delete it: sparse_config says which blocks are kept, wherever they are"
GRADIENTS = "delete it: gradients are sent as they are; torch's DistributedDataParallel has buckets and compression hooks"
SHARDS = "delete it: weights and optimizer states are sharded by fully_shard or DeepSpeed, around the model"
MESH = "delete it: the dimensions of a DeviceMesh say what is parallel, see docs/guides/distributed.md"
RESTART = "delete it: torchrun restarts, torch.distributed.checkpoint saves"
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
    "overlap_communication": OVERLAP,
    "enable_async_communication": OVERLAP,
    "communication_backend": GROUP,
    "enable_deepspeed_integration": SHARDS,
    "enable_apex_optimization": SHARDS,
    "use_deepspeed": SHARDS,
    "zero_stage": SHARDS,
    "cpu_offload": SHARDS,
    "nvme_offload": SHARDS,
    "use_8bit_optimizer": SHARDS,
    "model_parallel": MESH,
    "sequence_parallel": MESH,
    "data_parallel": MESH,
    "use_gradient_compression": GRADIENTS,
    "enable_gradient_compression": GRADIENTS,
    "compression_ratio": GRADIENTS,
    "bucket_size": GRADIENTS,
    "gradient_bucket_size_mb": GRADIENTS,
    "gradient_bucket_count": GRADIENTS,
    "enable_fault_tolerance": RESTART,
    "checkpoint_interval": RESTART,
    "auto_resume": RESTART,
    "local_sparsity": ONE_PATTERN,
    "global_sparsity": ONE_PATTERN,
    "inter_node_sparsity": ONE_PATTERN,
    "adaptive_sparsity_rate": ONE_PATTERN,
    "enable_load_balancing": BALANCE,
    "load_balance_threshold": BALANCE,
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

IN_PATTERN = "use {} of SparsePatternConfig, in sparse_config of the module"
PROJECTIONS = "delete it: the module is called with q, k and v, projections are yours"
# The same about keywords that mean nothing to one class only.
OF_ONE_CLASS: dict[str, dict[str, str]] = {
    "DistributedSparseConfig": {
        "pattern_type": IN_PATTERN.format("pattern_type"),
        "sparsity_ratio": IN_PATTERN.format("sparsity_ratio") + ", the fraction kept",
        "block_size": IN_PATTERN.format("block_size"),
    },
    "BlockSparseDistributedAttention": dict.fromkeys(("embed_dim", "num_heads"), PROJECTIONS),
}
OF_ONE_CLASS["distributed_config"] = OF_ONE_CLASS["DistributedSparseConfig"]  # a dict of its fields

Made = TypeVar("Made", bound=Callable[..., Any])


def old_keywords(who: str) -> dict[str, str]:
    """What to do about the keywords of 0.2.0 that a class or function does not take."""
    return {**OLD_KEYWORDS, **OF_ONE_CLASS.get(who, {})}


def refuse_old_keywords(given: Iterable[object], who: str) -> None:
    """Raise TypeError for keywords of 0.2.0, with what to do about each."""
    known = old_keywords(who)
    old = [name for name in given if isinstance(name, str) and name in known]
    if old:
        what = "".join(f"\n  {name}: {known[name]}" for name in old)
        raise TypeError(
            f"{who} takes no {', '.join(map(repr, old))}, of version 0.2.0:{what}\n"
            f"{PAGE} of the repository has all arguments of 0.2.0."
        )


def explains_old_keywords(made: Made) -> Made:
    """Decorator of classes and functions: keywords of 0.2.0 say what to do, not only that they are unknown."""
    called: Any = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    who = made.__name__
    names = old_keywords(who).keys()

    @functools.wraps(called)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not names.isdisjoint(kwargs):
            refuse_old_keywords(kwargs, who)
        return called(*args, **kwargs)

    if not isinstance(made, type):
        return checked  # type: ignore[return-value]
    made.__init__ = checked  # type: ignore[misc]
    return made
