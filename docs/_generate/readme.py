"""The picture of the README and the home page, which is committed: `python docs/_generate/readme.py` writes both forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PICTURES = {"light": ASSETS / "pattern.svg", "dark": ASSETS / "pattern-dark.svg"}
BLOCKS, SIDE, TOP = 32, 8, 24  # blocks a side, pixels per block, where the grids begin


@dataclass(frozen=True)
class Colours:
    text: str
    left_out: str
    others: str
    diagonal: str


COLOURS = {
    "light": Colours("#333333", "#f1f3f5", "#3b5bdb", "#f08c00"),
    "dark": Colours("#d5d8e0", "#2b2f3a", "#7f92ff", "#ffa94d"),
}


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


def svg(scheme: str) -> str:
    """The whole picture, on the ground of the page, in colours for a light or a dark one."""
    colours = COLOURS[scheme]
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 572 290" width="572" height="290" role="img" aria-labelledby="title">',
        f'<title id="title">Active blocks of the dilated_sparse pattern, {BLOCKS} by {BLOCKS} blocks, 20 percent kept: '
        "every query at the left, causal at the right</title>",
    ]
    for left, (name, layout) in zip((10, 306), layouts().items(), strict=True):
        size = SIDE * BLOCKS
        lines += [
            f'<text x="{left}" y="16" font-family="sans-serif" font-size="12" fill="{colours.text}">{name}</text>',
            f'<rect x="{left}" y="{TOP}" width="{size}" height="{size}" fill="{colours.left_out}"/>',
            f'<path fill="{colours.others}" d="{squares(layout, left, False)}"/>',
            f'<path fill="{colours.diagonal}" d="{squares(layout, left, True)}"/>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    for scheme, path in PICTURES.items():
        path.write_text(svg(scheme), "utf-8")
