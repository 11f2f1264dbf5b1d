"""Why the hierarchical variant went: block counts of its configurations, and how much its levels overlapped."""

from __future__ import annotations

from pathlib import Path

import bars

from migrate_hierarchical.density import LEVELS, new_blocks, old_blocks

LENGTHS = (16_384, 32_768)
BLOCK = 64
NAMES = {"standard": "default (`standard`)"}


def overlap(name: str, seq_len: int) -> tuple[int, int]:
    """Blocks of all levels counted one by one, and of their union."""
    levels = LEVELS[name]
    n_blocks = seq_len // BLOCK
    alone = 0
    for level in levels:
        rows = range(0, n_blocks, max(1, level["stride"] // BLOCK))
        if level["window_size"] == -1:
            alone += len(rows) * n_blocks
            continue
        half = max(1, level["window_size"] // BLOCK) // 2
        alone += sum(min(n_blocks - 1, row + half) - max(0, row - half) + 1 for row in rows)
    return alone, old_blocks(levels, seq_len, BLOCK)


def write(markdown: Path, assets: Path) -> None:
    lines = [
        "| configuration | tokens | active blocks | of | kept | times the blocks of ratio 0.01 |",
        "|---|---|---|---|---|---|",
    ]
    for seq_len in LENGTHS:
        total = (seq_len // BLOCK) ** 2
        new = new_blocks(0.01, seq_len, BLOCK)
        for name, levels in LEVELS.items():
            old = old_blocks(levels, seq_len, BLOCK)
            label = NAMES.get(name, f"`{name}`")
            lines.append(
                f"| {label} | {seq_len:,} | {old:,} | {total:,} | {old / total:.1%} | {old / new:.1f} |"
            )
        lines.append(
            f"| `dilated_sparse`, ratio 0.01 | {seq_len:,} | {new:,} | {total:,} | {new / total:.1%} | 1.0 |"
        )
    (markdown / "densities.md").write_text("\n".join(lines) + "\n", "utf-8")

    lines = [
        "| configuration | blocks of all levels, added up | different blocks | chosen more than once |",
        "|---|---|---|---|",
    ]
    for name in LEVELS:
        alone, union = overlap(name, LENGTHS[0])
        lines.append(
            f"| {NAMES.get(name, f'`{name}`')} | {alone:,} | {union:,} | {alone - union:,} ({(alone - union) / alone:.0%}) |"
        )
    (markdown / "overlap.md").write_text("\n".join(lines) + "\n", "utf-8")

    labels = [*LEVELS, "ratio 0.01"]
    total = (LENGTHS[0] // BLOCK) ** 2
    shares = [100 * old_blocks(levels, LENGTHS[0], BLOCK) / total for levels in LEVELS.values()]
    shares.append(100 * new_blocks(0.01, LENGTHS[0], BLOCK) / total)
    title = f"Blocks kept at {LENGTHS[0]:,} tokens, %"
    (markdown / "densities-bars.md").write_text(
        bars.single(title, dict(zip(labels, shares)), digits=1), "utf-8"
    )
