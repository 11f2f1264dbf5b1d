"""The modules of 0.2.0: importing one says where its names are now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from ..removed import REPLACEMENTS, raise_removed_name
from .names import PAGE

PACKAGE = __name__.partition(".")[0]

OTHER_RINGS = (
    "ring_attention",
    "ring_dilated_attention_hilbert_optimized_correct",
    "ring_dilated_attention_hilbert_optimized_fixed",
    "ring_dilated_attention_hilbert_proper",
    "ring_dilated_attention_hybrid_hilbert",
    "ring_dilated_attention_simple_triton",
    "ring_dilated_attention_triton_integrated",
    "ring_dilated_attention_v3",
    "simulated_ring_dilated_attention",
    "true_ring_dilated_attention",
)

# The modules of 0.2.0, also of its later folders, and the public names that they had.
OLD_MODULES: dict[str, tuple[str, ...]] = {
    "block_sparse_adaptive": ("AdaptiveConfig", "BlockSparseAdaptive"),
    "block_sparse_adaptive_fixed": ("BlockSparseAdaptive",),
    "block_sparse_factory": ("create_block_sparse_attention", "get_block_sparse_preset"),
    "block_sparse_optimized": ("BlockSparseOptimized",),
    "block_sparse_ring_dilated_attention": ("BlockSparseRingDilatedAttention", "SparsePatternConfig"),
    "block_sparse_ring_dilated_attention_fixed": ("BlockSparseRingDilatedAttention",),
    "block_sparse_ring_dilated_attention_hilbert_post_pattern": ("BlockSparseRingDilatedAttention",),
    "block_sparse_ring_dilated_attention_original": ("BlockSparseRingDilatedAttention",),
    "block_sparse_ring_distributed_dilated_attention": ("BlockSparseRingDistributedDilatedAttention",),
    "block_sparse_ring_multihead_dilated_attention": ("BlockSparseRingMultiheadDilatedAttention",),
    "block_sparse_torch_sparse": ("BlockSparseTorchSparse",),
    "distributed_sparse_config": ("DistributedSparseConfig", "DistributedSparsePattern"),
    "sparse": ("create_block_sparse_attention", "SparsePatternConfig"),
    "sparse_pattern_generator": ("SparsePatternGenerator",),
    "sparse_pattern_utils": ("PatternConfig", "SparsePatternGenerator"),
    "base": ("DilatedAttention", "MultiheadDilatedAttention"),
    "dilated_attention": ("DilatedAttention",),
    "improved_dilated_attention_v2": ("ImprovedDilatedAttentionV2",),
    "improved_dilated_attention": ("ImprovedDilatedAttention",),
    "multihead_dilated_attention": ("MultiheadDilatedAttention",),
    "improved_multihead_dilated_attention": ("ImprovedMultiheadDilatedAttention",),
    "distributed_dilated_attention": ("DistributedMultiheadDilatedAttention",),
    "improved_distributed_dilated_attention": ("DistributedImprovedDilatedAttention",),
    "dynamic_dilated_attention": ("DynamicDilatedAttention",),
    "head_parallel_dilated_attention_optimized": ("DilatedAttention",),
    "long_net": ("LongNet",),
    "models": ("LongNet", "DilatedTransformerEncoderLayer"),
    "transformer": ("DilatedTransformerEncoderLayer", "DilatedTransformerDecoderLayer"),
    "transformer_refactored": ("DilatedTransformerEncoderLayer", "DilatedTransformerDecoderLayer"),
    "ring": ("RingAttentionConfig", "create_ring_attention"),
    "ring_dilated_attention": ("RingDilatedAttention",),
    "ring_dilated_attention_production": ("RingDilatedAttentionProduction", "RingAttentionConfig"),
    "ring_dilated_attention_production_fixed": ("RingDilatedAttentionProduction",),
    "ring_dilated_attention_v2": ("RingDilatedAttentionV2",),
    "ring_dilated_attention_v2_collective": ("RingDilatedAttentionV2Collective",),
    "ring_dilated_attention_v2_flash": ("RingDilatedAttentionV2Flash",),
    "ring_distributed_dilated_attention": ("RingDistributedDilatedAttention",),
    "ring_distributed_refactored": ("RingDistributedDilatedAttention",),
    "ring_improved_distributed_dilated_attention": ("RingDistributedDilatedAttention",),
    "ring_multihead_dilated_attention": ("RingMultiheadDilatedAttention",),
    **dict.fromkeys(OTHER_RINGS, ("RingDilatedAttention",)),
    "core": ("create_dilated_attention", "create_multihead_dilated_attention"),
    "utils": ("PatternConfig", "SparsePatternGenerator"),
    "distributed_memory_optimization": (),
    "ring_attention_lse": (),
    "ring_attention_utils": (),
    "kernels": (),
}
NOTES = {
    "core": "Its configs are gone: pass their fields as arguments. Its memory pools and pattern caches are not needed: "
    "delete them.",
    "utils": "Its helpers are gone: for ALiBi use alibi_slopes, for masks BlockLayout.from_mask_mod.",
    "distributed_memory_optimization": "Its memory pools are not needed: delete them.",
    "ring_attention_lse": "It has no counterpart: return_lse=True of block_sparse_attention returns the lse.",
    "ring_attention_utils": "It has no counterpart; for several GPUs use BlockSparseDistributedAttention: docs/guides/distributed.md.",
    "kernels": "Hilbert curves have no counterpart; backends are chosen by themselves.",
}


class OldModuleFinder(MetaPathFinder):
    """Says what to import instead of a module of 0.2.0. It is asked only for modules that nothing else finds."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent == PACKAGE and name in REPLACEMENTS:
            raise_removed_name(name)
        if parent == PACKAGE and name in OLD_MODULES:
            raise_old_module(name)
        return None


def raise_old_module(module: str) -> NoReturn:
    """Raise ModuleNotFoundError for a module of 0.2.0, with where its names are."""
    names = ", ".join(OLD_MODULES[module])
    where = (
        f"Import from the package itself, which has the name or says what replaces it:\n\n    from {PACKAGE} import {names}\n\n"
        if names
        else ""
    )
    note = f"{NOTES[module]} " if module in NOTES else ""
    raise ModuleNotFoundError(
        f"`{PACKAGE}.{module}` is a module of version 0.2.0 that does not exist any more. {where}{note}"
        f"{PAGE} of the repository has all names of 0.2.0 and what differs.",
        name=f"{PACKAGE}.{module}",
    )


def install() -> None:
    """Add the finder behind all others, once per process."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if type(finder).__name__ != OldModuleFinder.__name__
    ]
    sys.meta_path.append(OldModuleFinder())
