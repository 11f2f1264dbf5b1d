"""Pictures of the patterns, from layouts of the library."""

from __future__ import annotations

from html import escape
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
        shown = []
        for config in PATTERNS:
            layout = BlockLayout.from_config(config, LENGTH, causal=causal)
            picture = f"{name}-{config.pattern_type}.svg"
            (assets / picture).write_text(figures.grid(layout), "utf-8")
            caption = "<br>".join(map(escape, title(config, layout).splitlines()))
            shown.append(
                f'<figure><img src="../assets/generated/{picture}" alt="{alt(config, causal)}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        (markdown / f"{name}.md").write_text(
            '<div class="gallery" markdown="0">\n' + "\n".join(shown) + "\n</div>\n", "utf-8"
        )


def alt(config: SparsePatternConfig, causal: bool) -> str:
    """What the picture shows, in words."""
    seen = {
        "dilated_sparse": "the diagonal with single blocks at growing distances",
        "local_window": "a band along the diagonal",
        "global_local": "a band along the diagonal, a full first row and column",
    }
    return f"{'The lower triangle of a' if causal else 'A'} grid of blocks: {seen[config.pattern_type]}"
