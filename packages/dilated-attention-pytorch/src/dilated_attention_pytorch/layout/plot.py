"""Pictures of layouts, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .layout import BlockLayout

MAX_PIXELS = 512


def bin_size(layout: BlockLayout) -> int:
    """Blocks per side of what is drawn as one pixel."""
    return -(-max(layout.grid.n_rows, layout.grid.n_cols) // MAX_PIXELS)


def draw_layout(layout: BlockLayout, ax: Axes | None, head: int, **kwargs: Any) -> Axes:
    """Draw one head's blocks; matrices of more than 512 blocks a side are binned, darker where denser."""
    if ax is not None and not hasattr(ax, "imshow"):
        raise TypeError(
            f"ax must be matplotlib Axes, got {type(ax).__name__}; use the second of plt.subplots()"
        )
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    grid = layout.grid
    heads, rows, cols = layout.head_rows_cols()
    rows, cols = rows[heads == head], cols[heads == head]
    step = bin_size(layout)
    height, width = -(-grid.n_rows // step), -(-grid.n_cols // step)
    counts = torch.bincount((rows // step) * width + cols // step, minlength=height * width)
    share = (counts.view(height, width).double() / step**2).cpu()
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 5 * height / width + 0.5), layout="constrained")
    bottom = (grid.first_row + grid.n_rows) * grid.block_size
    extent = (0, grid.n_cols * grid.block_size, bottom, grid.first_row * grid.block_size)
    options: dict[str, Any] = {
        "cmap": "Blues",
        "vmin": 0.0,
        "interpolation": "nearest",
        "extent": extent,
        "aspect": "equal",
    } | kwargs
    ax.imshow(share.pow(0.5).numpy(), **options)
    ax.set_xlabel("key position")
    ax.set_ylabel("query position")
    ax.set_title(
        f"{layout.num_active_blocks:,} of {layout.num_heads * grid.available():,} blocks ({layout.density:.2%})"
    )
    return ax
