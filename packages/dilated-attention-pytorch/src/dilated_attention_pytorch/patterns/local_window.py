"""local_window: the nearest blocks of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from .budget import ratio_budget
from .intervals import expand, nearest
from .registry import PairMasks, register


def window_interval(
    window_size: int, diagonal: Tensor, grid: BlockGrid, lowest: int = 0
) -> tuple[Tensor, Tensor]:
    """Start and length of each row's interval of columns for a window in tokens, rounded up to blocks.

    Causal: `window_size` past tokens besides the diagonal block. Otherwise half of them on each side.
    """
    radius = -(-window_size // (grid.block_size if grid.causal else 2 * grid.block_size))
    start = (diagonal - radius).clamp(min=lowest)
    stop = (diagonal if grid.causal else diagonal + radius).clamp(max=grid.n_cols - 1) + 1
    return start, (stop - start).clamp(min=0)


def exact_bounds(window_size: int, grid: BlockGrid) -> tuple[int, int]:
    """The least and the greatest ``query - key`` of an exact window; what is later in a causal grid does not matter."""
    if grid.causal:
        return 0, window_size - 1
    if grid.n_rows != grid.n_cols:
        raise ValueError(
            f"an exact window needs as many blocks of queries as of keys, or causal=True, got q_len {grid.q_len} and kv_len "
            f"{grid.kv_len}; say where the queries sit with BlockLayout.from_mask_mod"
        )
    return -(window_size // 2), window_size // 2


def exact_interval(window_size: int, diagonal: Tensor, grid: BlockGrid) -> tuple[Tensor, Tensor]:
    """Start and length of each row's interval of columns that hold a key of an exact window."""
    least, most = exact_bounds(window_size, grid)
    size = grid.block_size
    start = (diagonal - (most + size - 1) // size).clamp(min=0)
    stop = (diagonal + (size - 1 - least) // size).clamp(max=grid.n_cols - 1) + 1
    return start, (stop - start).clamp(min=0)


def exact_masks(config: SparsePatternConfig, grid: BlockGrid, rows: Tensor, cols: Tensor) -> PairMasks | None:
    """The masks of an exact window: they depend on the distance of two blocks alone, and all but two to four are whole."""
    if not config.exact or config.window_size is None:
        return None
    least, most = exact_bounds(config.window_size, grid)
    size, device = grid.block_size, rows.device
    # distances in blocks of which some pair is too far on either side
    partial = set(range((most + 1) // size, (most + size - 1) // size + 1))
    if not grid.causal:
        partial |= {-distance for distance in partial}
    distances = torch.tensor(sorted(partial), dtype=torch.int64, device=device)
    place = torch.arange(size, device=device)
    between = distances[:, None, None] * size + place[:, None] - place  # query - key
    masks = between <= most
    if not grid.causal:
        masks &= between >= least
    distance = rows + grid.first_row - cols
    number = torch.searchsorted(distances, distance).clamp(max=max(0, distances.numel() - 1))
    found = (
        distances[number] == distance if distances.numel() else torch.zeros_like(distance, dtype=torch.bool)
    )
    return PairMasks(torch.where(found, number, -1), masks)


@register("local_window", masks=exact_masks)
def local_window(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern, int64 (n_active,) each."""
    diagonal = grid.diagonal(device)
    if config.window_size is not None:
        interval = exact_interval if config.exact else window_interval
        start, length = interval(config.window_size, diagonal, grid)
    else:
        count = grid.visible_rows(ratio_budget(config, grid).blocks()).to(device)
        start, length = nearest(diagonal, count, 0, diagonal if grid.causal else grid.n_cols - 1)
    return expand(torch.arange(grid.n_rows, device=device), start, length)
