"""The names removed on 2025-07-07 and what each of them says when it is used."""

from __future__ import annotations

from typing import NoReturn

MIGRATION_GUIDE = "https://dilated-attention.github.io/dilated-attention-pytorch/migrate/"

# The wording is fixed: users search for it.
REMOVED_VARIANT_MESSAGE = (
    "Hierarchical variant has been removed due to poor memory efficiency. "
    "Use 'base' variant with pattern_type='dilated_sparse' and sparsity_ratio=0.01-0.05 (95-99% sparse) "
    "for better multi-scale coverage."
)

REPLACEMENTS = {
    "BlockSparseHierarchical": "create_block_sparse_attention(variant='base', "
    "sparse_config=SparsePatternConfig(pattern_type='dilated_sparse', sparsity_ratio=0.01))",
    "HierarchicalConfig": "SparsePatternConfig(pattern_type='dilated_sparse', sparsity_ratio=0.01, "
    "dilation_rates=[1, 2, 4, 8])",
    "get_hierarchical_presets": "get_block_sparse_preset('dilated')",
    "create_hierarchical_attention": "create_block_sparse_attention(variant='base', "
    "sparse_config=SparsePatternConfig(pattern_type='dilated_sparse', sparsity_ratio=0.01))",
    "create_hierarchical_block_sparse": "create_block_sparse_attention(variant='base', "
    "sparse_config=SparsePatternConfig(pattern_type='dilated_sparse', sparsity_ratio=0.01))",
    "block_sparse_hierarchical": "the package root: from dilated_attention_pytorch import "
    "create_block_sparse_attention, SparsePatternConfig",
}

REMOVED_PRESETS = ("hierarchical_standard", "hierarchical_fine", "hierarchical_long")


def raise_removed_variant() -> NoReturn:
    """Raise the ValueError of the removed variant, pattern type, presets and keyword."""
    raise ValueError(REMOVED_VARIANT_MESSAGE)


def raise_removed_name(name: str) -> NoReturn:
    """Raise ImportError for a removed public name: what replaces it, and how to rewrite the code."""
    raise ImportError(
        f"`dilated_attention_pytorch.{name}` was removed on 2025-07-07, with the hierarchical variant. "
        f"Use {REPLACEMENTS[name]} instead. "
        "`python -m migrate_hierarchical PATH` (pip install migrate-hierarchical) rewrites existing code. "
        f"Migration guide: {MIGRATION_GUIDE}"
    )
