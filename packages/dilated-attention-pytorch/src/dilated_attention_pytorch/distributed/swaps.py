"""swapped: ranks that have few blocks to choose from swap single ones until none costs too much."""

from __future__ import annotations

import torch
from torch import Tensor

from .windows import first_least

MOST_PAIRS = 2**18  # with more pairs of blocks to look at, ranks have so many blocks that windows fit


def swapped(owners: Tensor, costs: Tensor, world_size: int, most: int) -> Tensor:
    """The owners after swaps of two blocks, each between the dearest rank and another, at most four for every rank.

    The numbers of blocks stay, and so does the owner of the last block.

    Args:
        owners: int64 (n_blocks,), the rank of every block.
        costs: int64 (n_blocks,).
        world_size: ranks.
        most: what a rank may cost; there are no swaps once none costs more.
    """
    if owners.numel() ** 2 > MOST_PAIRS * world_size:
        return owners
    owners = owners.clone()
    loads = torch.zeros(world_size, dtype=torch.int64).index_add_(0, owners, costs)
    for _ in range(4 * world_size):
        dear = first_least(-loads)
        is_dear = owners[:-1] == dear
        mine, others = is_dear.nonzero(), (~is_dear).nonzero().flatten()  # (n, 1) and (m,)
        if int(loads[dear]) <= most or not mine.numel() or not others.numel():
            break
        moved = costs[mine] - costs[others]
        after = torch.maximum(loads[dear] - moved, loads[owners[others]] + moved)
        added = added_chunks(owners, mine, owners[others]) + added_chunks(owners, others, owners[mine[0]])
        added += 2 * ((mine - others).abs() == 1)  # two neighbours do not join what they leave
        best = first_least(after.clamp(min=most).flatten(), added.flatten(), after.flatten())
        row, col = divmod(best, others.numel())
        if after[row, col] >= loads[dear]:
            break
        rank = owners[others[col]].clone()
        owners[mine[row]], owners[others[col]] = rank, dear
        loads[dear] -= moved[row, col]
        loads[rank] += moved[row, col]
    return owners


def added_chunks(owners: Tensor, blocks: Tensor, ranks: Tensor) -> Tensor:
    """How many chunks there are more if each block, not the last of all, goes to a rank: -1 to 2."""
    around = torch.nn.functional.pad(owners, (1, 0), value=-1)
    before, own, behind = around[blocks], owners[blocks], owners[blocks + 1]
    splits = (before == own).long() + (behind == own).long()
    joins = (before == ranks).long() + (behind == ranks).long()
    return splits - joins
