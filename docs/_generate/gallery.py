"""Pictures of the patterns, from layouts of the library."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import figures

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import PATTERN_TYPES, takes
from dilated_attention_pytorch.patterns.registry import PATTERNS

LENGTH = 4096
CONFIGS = tuple(
    SparsePatternConfig(name, sparsity_ratio=0.1, global_tokens=64 if takes(name, "global_tokens") else 0)
    for name in PATTERN_TYPES
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
        for config in CONFIGS:
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
    source = sys.modules[PATTERNS[config.pattern_type].pairs.__module__]
    what = (source.__doc__ or "").splitlines()[0].removeprefix(f"{config.pattern_type}: ")
    return f"{'The lower triangle of a' if causal else 'A'} grid of blocks: {escape(what)}"
