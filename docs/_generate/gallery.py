"""Pictures of the patterns, from layouts of the library."""

from __future__ import annotations

from pathlib import Path

import figures

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

LENGTH = 4096
PATTERNS = {
    "dilated_sparse, 15 %": SparsePatternConfig("dilated_sparse", sparsity_ratio=0.15),
    "local_window, 15 %": SparsePatternConfig("local_window", sparsity_ratio=0.15),
    "global_local, 15 %": SparsePatternConfig("global_local", sparsity_ratio=0.15, global_tokens=64),
}


def write(markdown: Path, assets: Path) -> None:
    for name, causal in (("gallery", False), ("gallery-causal", True)):
        pictures = {
            title: BlockLayout.from_config(config, LENGTH, causal=causal).to_dense().numpy()
            for title, config in PATTERNS.items()
        }
        figures.layouts(assets / f"{name}.svg", pictures)
