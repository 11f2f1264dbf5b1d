"""The picture of the README and the home page, which is committed: `python docs/_generate/readme.py` writes it."""

from __future__ import annotations

from pathlib import Path

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

PICTURE = Path(__file__).resolve().parents[1] / "assets" / "pattern.svg"
BLOCKS, SIDE, TOP = 32, 8, 24  # blocks a side, pixels per block, where the grids begin
OTHERS, DIAGONAL = "#3b5bdb", "#f08c00"


def layouts() -> dict[str, BlockLayout]:
    """The two layouts, by what stands above them."""
    config = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.2)
    tokens = BLOCKS * config.block_size
    return {
        "dilated_sparse": BlockLayout.from_config(config, tokens),
        "dilated_sparse, causal": BlockLayout.from_config(config, tokens, causal=True),
    }


def squares(layout: BlockLayout, left: int, diagonal: bool) -> str:
    """The path of the blocks on the diagonal, or of the others."""
    return "".join(
        f"M{left + SIDE * col} {TOP + SIDE * row}h{SIDE - 1}v{SIDE - 1}h-{SIDE - 1}z"
        for row, cols in enumerate(layout.rows())
        for col in cols
        if (row == col) == diagonal
    )


def svg() -> str:
    """The whole picture."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 572 290" width="572" height="290" role="img" aria-labelledby="title">',
        f'<title id="title">Active blocks of the dilated_sparse pattern, {BLOCKS} by {BLOCKS} blocks, 20 percent kept: '
        "every query at the left, causal at the right</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for left, (name, layout) in zip((10, 306), layouts().items(), strict=True):
        size = SIDE * BLOCKS
        lines += [
            f'<text x="{left}" y="16" font-family="sans-serif" font-size="12" fill="#333333">{name}</text>',
            f'<rect x="{left}" y="{TOP}" width="{size}" height="{size}" fill="#f1f3f5"/>',
            f'<path fill="{OTHERS}" d="{squares(layout, left, False)}"/>',
            f'<path fill="{DIAGONAL}" d="{squares(layout, left, True)}"/>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(svg(), "utf-8")
