"""Density and layers to full coverage by length, and the removed configurations beside dilated_sparse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from migrate_hierarchical.density import LEVELS, Level, levels_of, old_rows

BLOCK = 64
LENGTHS = tuple(1024 * 2**power for power in range(8))
RATIOS = (0.01, 0.02, 0.05, 0.1)
GIVEN_RATES = (1, 2, 4, 8)
COMPARED_LENGTHS = (16_384, 32_768)
FAR = 1024  # tokens


def new_layout(ratio: float, seq_len: int, causal: bool, rates: tuple[int, ...] | None = None) -> BlockLayout:
    """dilated_sparse, with powers of two where no rates are given."""
    config = SparsePatternConfig(sparsity_ratio=ratio, block_size=BLOCK, dilation_rates=rates)
    return BlockLayout.from_config(config, seq_len, causal=causal)


def old_layout(levels: list[Level], seq_len: int, causal: bool) -> BlockLayout:
    """The blocks of a removed configuration."""
    n_blocks = seq_len // BLOCK
    mask = torch.zeros(n_blocks, n_blocks, dtype=torch.bool)
    for row, columns in enumerate(old_rows(levels_of(levels), n_blocks, BLOCK, causal)):
        mask[row, columns.start : columns.stop] = True
    return BlockLayout.from_dense(mask, BLOCK, causal=causal)


def rows_that_see_far(layout: BlockLayout) -> float:
    """Share of the rows with a block more than FAR tokens away."""
    _, rows, cols = layout.coo()
    return len(rows[(rows - cols).abs() * BLOCK > FAR].unique()) / layout.grid.n_rows


def layers(layout: BlockLayout) -> str:
    hops = layout.hops_to_full_coverage()
    return "never" if hops is None else f"{hops:,}"


def by_length(causal: bool) -> Iterator[str]:
    """The table by which a ratio is chosen."""
    yield "| tokens | " + " | ".join(f"ratio {ratio}" for ratio in RATIOS) + " |"
    yield "|---" * (1 + len(RATIOS)) + "|"
    for seq_len in LENGTHS:
        cells = []
        for ratio in RATIOS:
            found = new_layout(ratio, seq_len, causal)
            given = new_layout(ratio, seq_len, causal, GIVEN_RATES)
            cells.append(f"{found.density:.1%}: {layers(found)} ({layers(given)})")
        yield f"| {seq_len:,} | " + " | ".join(cells) + " |"


def beside_the_removed(causal: bool) -> Iterator[str]:
    """Every removed configuration, and dilated_sparse with few blocks, with 5 % and with as many as the default had."""
    yield "| tokens | configuration | blocks kept | rows that see farther than 1,024 tokens | layers to full coverage |"
    yield "|---|---|---|---|---|"
    for seq_len in COMPARED_LENGTHS:
        shown = {f"hierarchical, `{name}`": old_layout(LEVELS[name], seq_len, causal) for name in LEVELS}
        as_many = round(shown["hierarchical, `standard`"].density, 4)
        shown["ratio 0.01, rates 1, 2, 4, 8"] = new_layout(0.01, seq_len, causal, GIVEN_RATES)
        for ratio in (0.01, 0.05, as_many, 0.25):
            shown[f"ratio {ratio}"] = new_layout(ratio, seq_len, causal)
        for name, layout in shown.items():
            yield (
                f"| {seq_len:,} | {name} | {layout.num_active_blocks:,} ({layout.density:.1%}) | "
                f"{rows_that_see_far(layout):.0%} | {layers(layout)} |"
            )


def write(markdown: Path, assets: Path) -> None:
    for name, causal in (("causal", True), ("all", False)):
        (markdown / f"coverage-{name}.md").write_text("\n".join(by_length(causal)) + "\n", "utf-8")
        text = "\n".join(beside_the_removed(causal)) + "\n"
        (markdown / f"coverage-removed-{name}.md").write_text(text, "utf-8")
