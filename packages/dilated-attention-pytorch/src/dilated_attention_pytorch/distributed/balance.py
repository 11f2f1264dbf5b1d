"""Which blocks of a sequence each rank holds, from the cost of their rows: integer arithmetic, alike on every rank.

The owner of the last block is always the last rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import BlockLayout

Chunks = tuple[tuple[tuple[int, int], ...], ...]
"""Per rank its ranges (first block, one behind the last), ascending; none touches the one before."""

BALANCES = ("cost", "zigzag", "contiguous")


def row_costs(layouts: BlockLayout | Sequence[BlockLayout]) -> Tensor:
    """Active blocks of every row over the heads and batch elements of all layouts, int64 (n_blocks,) on the CPU.

    Where layouts have different numbers of heads or batch elements, those with fewer count so often that all weigh alike.
    A layout on a GPU is waited for.
    """
    several = (layouts,) if isinstance(layouts, BlockLayout) else tuple(layouts)
    n_shared = math.lcm(*(layout.batch * layout.num_heads for layout in several))
    costs = torch.zeros(several[0].grid.n_rows, dtype=torch.int64)
    for layout in several:
        of_lists = layout.row_lists.indptr.long().diff().reshape(-1, costs.numel())
        costs += of_lists.sum(0).cpu() * (n_shared // of_lists.shape[0])
    return costs


def chunks_of(balance: str, costs: Tensor, world_size: int) -> Chunks:
    """The chunks of every rank.

    Args:
        balance: "contiguous": one chunk a rank. "zigzag": two chunks a rank, the cheap and the dear end of a causal
            layout together. "cost": equal numbers of blocks and nearly equal costs.
        costs: int64 (n_blocks,) on the CPU, see `row_costs`.
        world_size: ranks, at most n_blocks.
    """
    sizes = equal_sizes(costs.numel(), world_size)
    return contiguous_chunks(sizes) if balance == "contiguous" else zigzag_chunks(sizes)


def equal_sizes(n_blocks: int, world_size: int) -> list[int]:
    """Blocks per rank; those that are left over go to the last ranks, as the last block may be short."""
    fewest, left = divmod(n_blocks, world_size)
    return [fewest + (rank >= world_size - left) for rank in range(world_size)]


def contiguous_chunks(sizes: Sequence[int]) -> Chunks:
    """One chunk per rank, in their order."""
    return in_order([(rank, size) for rank, size in enumerate(sizes)])


def zigzag_chunks(sizes: Sequence[int]) -> Chunks:
    """Two chunks per rank: the first halves from the last rank to the first, then the others from the first to the last."""
    first = [(rank, sizes[rank] // 2) for rank in reversed(range(len(sizes)))]
    return in_order(first + [(rank, size - size // 2) for rank, size in enumerate(sizes)])


def in_order(pieces: Sequence[tuple[int, int]]) -> Chunks:
    """The chunks of consecutive pieces (rank, number of blocks); pieces of one rank that touch become one chunk."""
    chunks: list[list[tuple[int, int]]] = [[] for _ in range(1 + max(rank for rank, _ in pieces))]
    start = 0
    for rank, size in pieces:
        mine, stop = chunks[rank], start + size
        if size and mine and mine[-1][1] == start:
            mine[-1] = (mine[-1][0], stop)
        elif size:
            mine.append((start, stop))
        start = stop
    return tuple(tuple(mine) for mine in chunks)
