"""The names removed on 2025-07-07, and the errors raised when one of them is used."""

from __future__ import annotations

import textwrap
from typing import NoReturn

# Users search for this text: do not change it.
REMOVED_VARIANT_MESSAGE = (
    "Hierarchical variant has been removed due to poor memory efficiency. "
    "Use 'base' variant with pattern_type='dilated_sparse' and sparsity_ratio=0.01-0.05 (95-99% sparse) "
    "for better multi-scale coverage."
)

ATTENTION = """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

attention = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,  # keeps 1% of the blocks, at least 2 per row (causal: 3)
        dilation_rates=[1, 2, 4, 8],  # distances in blocks; sparse rows share them out
    ),
)
"""
CONFIG = """\
from dilated_attention_pytorch import SparsePatternConfig

sparse_config = SparsePatternConfig(
    pattern_type="dilated_sparse",
    sparsity_ratio=0.01,  # keeps 1% of the blocks, at least 2 per row (causal: 3)
    dilation_rates=[1, 2, 4, 8],  # distances in blocks; sparse rows share them out
)
"""
PRESET = """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset("dilated")  # or "local", "global_local", "ultra_sparse"
"""

# For every removed name, a program that replaces it and runs unchanged.
REPLACEMENTS = {
    "BlockSparseHierarchical": ATTENTION,
    "HierarchicalConfig": CONFIG,
    "get_hierarchical_presets": PRESET,
    "create_hierarchical_attention": ATTENTION,
    "create_hierarchical_block_sparse": ATTENTION,
    "block_sparse_hierarchical": ATTENTION,
}

REMOVED_PRESETS = ("hierarchical_standard", "hierarchical_fine", "hierarchical_long")


def raise_removed_variant() -> NoReturn:
    """Raise ValueError for a removed variant, pattern type, preset or keyword argument."""
    raise ValueError(REMOVED_VARIANT_MESSAGE)


def raise_removed_name(name: str) -> NoReturn:
    """Raise ImportError for a removed public name, with its replacement and how to rewrite existing code."""
    raise ImportError(
        f"`dilated_attention_pytorch.{name}` was removed on 2025-07-07, with the hierarchical variant. "
        f"Write instead:\n\n{textwrap.indent(REPLACEMENTS[name], '    ')}\n"
        "`python -m migrate_hierarchical PATH` rewrites existing code. It comes from the repository of this "
        "library: in a clone of it, `pip install ./tools/migrate-hierarchical`. The migration guide is "
        "docs/migrate.md there."
    )
