"""Plots of layouts, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..grid import BlockGrid
from .element_masks import Blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PIXELS = 512


def bin_size(grid: BlockGrid) -> int:
    """Blocks per side of a pixel."""
    return -(-max(grid.n_rows, grid.n_cols) // MAX_PIXELS)


def plot_blocks(
    grid: BlockGrid, blocks: Blocks, shares: Tensor, title: str, ax: Axes | None, **kwargs: Any
) -> Axes:
    """Plot the blocks of one head; more than 512 blocks a side are binned, darker where denser.

    Args:
        grid: of the layout.
        blocks: those of the head.
        shares: (n,), the share of the pairs that count in each block; the fewer, the lighter.
        title: of the plot.
        ax: where to plot, None for a new figure.
        **kwargs: for ``ax.imshow``.
    """
    if ax is not None and not hasattr(ax, "imshow"):
        raise TypeError(
            f"ax must be matplotlib Axes, got {type(ax).__name__}; use the second of plt.subplots()"
        )
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    step = bin_size(grid)
    height, width = -(-grid.n_rows // step), -(-grid.n_cols // step)
    pixel = blocks.row // step * width + blocks.col // step
    total = torch.bincount(pixel, weights=shares, minlength=height * width)
    share = (total.view(height, width) / step**2).cpu()
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
    ax.set_title(title)
    return ax
