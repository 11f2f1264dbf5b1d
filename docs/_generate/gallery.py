"""Pictures of the patterns, from layouts of the library."""

from __future__ import annotations

from pathlib import Path

import figures

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

LENGTH = 4096
PATTERNS = (
    SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1),
    SparsePatternConfig("local_window", sparsity_ratio=0.1),
    SparsePatternConfig("global_local", sparsity_ratio=0.1, global_tokens=64),
)


def title(config: SparsePatternConfig, layout: BlockLayout) -> str:
    """Density asked and real, the rows at which `min_blocks` decides, layers to full coverage."""
    stats, hops = layout.stats(), layout.hops_to_full_coverage()
    return (
        f"{config.pattern_type}\nasked {stats.asked_density:.1%}, kept {stats.density:.1%}\n"
        f"{stats.rows_at_floor} of {stats.num_rows} rows at the floor\n"
        f"full coverage: {'never' if hops is None else f'{hops} layers'}"
    )


def write(markdown: Path, assets: Path) -> None:
    for name, causal in (("gallery", False), ("gallery-causal", True)):
        found = {config: BlockLayout.from_config(config, LENGTH, causal=causal) for config in PATTERNS}
        pictures = {title(config, layout): layout.to_dense().numpy() for config, layout in found.items()}
        figures.layouts(assets / f"{name}.svg", pictures)
