"""Which blocks of a sequence each rank holds, from the cost of their rows: integer arithmetic, alike on every rank.

The owner of the last block is always the last rank.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import BlockLayout
from .swaps import swapped
from .windows import CircleOfBlocks, Window

Chunks = tuple[tuple[tuple[int, int], ...], ...]
"""Per rank its ranges (first block, one behind the last), ascending; none touches the one before."""

BALANCES = ("cost", "zigzag", "contiguous")
TOLERANCE = 3  # per cent that a rank may cost over the mean
STEP = 1  # per cent of the mean between windows that are told apart by their cost
MOST_OF_A_ROW = 32  # a row that costs more than this part of a rank is placed on its own


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
            layout together. "cost": see `balanced_chunks`.
        costs: int64 (n_blocks,) on the CPU, see `row_costs`.
        world_size: ranks, at most n_blocks.
    """
    sizes = equal_sizes(costs.numel(), world_size)
    if balance == "cost":
        return balanced_chunks(costs, sizes)
    return contiguous_chunks(sizes) if balance == "contiguous" else zigzag_chunks(sizes)


def loads(chunks: Chunks, costs: Tensor) -> list[int]:
    """What the rows of each rank cost together."""
    sums = torch.nn.functional.pad(costs.cumsum(0), (1, 0))
    bounds = torch.tensor([bound for mine in chunks for pair in mine for bound in pair])
    of_chunks = iter(sums[bounds].reshape(-1, 2).diff().flatten().tolist())
    return [sum(next(of_chunks) for _ in mine) for mine in chunks]


def imbalance(chunks: Chunks, costs: Tensor) -> float:
    """By how much the dearest rank costs more than the mean, as a share of the mean; 0 where nothing costs anything."""
    of_ranks = loads(chunks, costs)
    return max(of_ranks) * len(of_ranks) / max(1, sum(of_ranks)) - 1 if any(of_ranks) else 0.0


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
    """The chunks of consecutive pieces (rank, number of blocks)."""
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(1 + max(rank for rank, _ in pieces))]
    start = 0
    for rank, size in pieces:
        ranges[rank].append((start, start + size))
        start += size
    return tuple(map(joined, ranges))


def joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ascending ranges without empty ones, those that touch as one."""
    found: list[tuple[int, int]] = []
    for first, stop in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], stop)
        elif first < stop:
            found.append((first, stop))
    return tuple(found)


def balanced_chunks(costs: Tensor, sizes: Sequence[int]) -> Chunks:
    """The first of these in which no rank costs more than `TOLERANCE` over the mean, otherwise the one whose dearest rank is cheapest:

    1. one chunk per rank, of equal numbers of blocks;
    2. windows on a circle, of equal numbers of blocks, about two chunks per rank;
    3. the same, with single blocks swapped where ranks have too few to choose from;
    4. rows that cost a good part of a rank's share, as those of global tokens do, spread over the ranks; a rank that cannot
       pay for as many other blocks as the others holds fewer, as few less as needed.

    A row that alone costs more than that sets the limit instead; then no windows are tried.
    """
    most = most_of_a_rank(costs, len(sizes))
    is_one_too_dear = int(costs.max()) * len(sizes) > int(costs.sum())
    found = contiguous_chunks(sizes)
    for make in (spread_chunks,) if is_one_too_dear else (window_chunks, swapped_chunks, spread_chunks):
        if max(loads(found, costs)) <= most:
            return found
        found = min(found, make(costs, sizes), key=lambda chunks: max(loads(chunks, costs)))
    return found


def most_of_a_rank(costs: Tensor, world_size: int) -> int:
    """What a rank may cost: the mean and `TOLERANCE`, or the dearest row."""
    return max(int(costs.max()), int(costs.sum()) * (100 + TOLERANCE) // (100 * world_size))


def window_chunks(costs: Tensor, sizes: Sequence[int]) -> Chunks:
    """Rank by rank the window of the blocks left whose cost is closest to the mean of what is left."""
    circle = CircleOfBlocks(costs, [(0, costs.numel())])
    fewest, n_longer = sizes[0], sum(size > sizes[0] for size in sizes)
    taken = []
    for n_ranks in range(len(sizes), 0, -1):
        window = fair_window(circle, fewest, n_ranks, n_longer)
        n_longer -= window.length > fewest
        taken.append(circle.take(window))
    return of_taken(taken, costs.numel())


def swapped_chunks(costs: Tensor, sizes: Sequence[int]) -> Chunks:
    """The windows, after swaps of single blocks."""
    owners = owners_of(window_chunks(costs, sizes), costs.numel())
    return chunks_of_owners(swapped(owners, costs, len(sizes), most_of_a_rank(costs, len(sizes))))


def owners_of(chunks: Chunks, n_blocks: int) -> Tensor:
    """The rank of every block, int64 (n_blocks,)."""
    owners = torch.empty(n_blocks, dtype=torch.int64)
    for rank, mine in enumerate(chunks):
        for first, stop in mine:
            owners[first:stop] = rank
    return owners


def chunks_of_owners(owners: Tensor) -> Chunks:
    """The inverse of `owners_of`."""
    ranks, sizes = owners.unique_consecutive(return_counts=True)
    return in_order(list(zip(ranks.tolist(), sizes.tolist())))


def fair_window(circle: CircleOfBlocks, fewest: int, n_ranks: int, n_longer: int) -> Window:
    """The window for one of `n_ranks` that are left, of which `n_longer` get a block more, among them the owner of the last block."""
    mean = circle.cost // n_ranks
    step = step_of(mean)
    if n_longer in (0, n_ranks):
        return circle.closest(fewest + (n_longer > 0), mean, step)
    if not circle.holds_last:
        return circle.closest(fewest, mean, step)
    with_last = circle.length - fewest - 1  # where the longer windows start that hold the last block
    window = circle.closest(fewest, mean, step, 0, with_last + 1)
    if window.miss:
        return min(window, circle.closest(fewest + 1, mean, step, with_last), key=lambda each: each.miss)
    return window


def step_of(cost: int) -> int:
    """Windows whose costs differ by less count as alike."""
    return max(1, cost * STEP // 100)


def spread_chunks(costs: Tensor, sizes: Sequence[int]) -> Chunks:
    """The dear rows spread over the ranks so that these cost alike, then windows of the other blocks, the dearest rank first."""
    most = most_of_a_rank(costs, len(sizes))
    dear = spread_rows(costs, (costs > most // MOST_OF_A_ROW).nonzero().flatten().tolist(), len(sizes))
    of_dear = [sum(int(costs[row]) for row in mine) for mine in dear]
    circle = CircleOfBlocks(costs, between([row for mine in dear for row in mine], costs.numel()))
    by_cost = sorted(range(len(sizes)), key=lambda rank: -of_dear[rank])
    taken = []
    for done, rank in enumerate(by_cost):
        left = by_cost[done:]
        length = (circle.length + sum(len(dear[each]) for each in left)) // len(left) - len(dear[rank])
        mean = (circle.cost + sum(of_dear[each] for each in left)) // len(left) - of_dear[rank]
        if len(left) == 1:
            window = Window(0, circle.length)
        else:
            window = circle.longest(min(max(0, length), circle.length), most - of_dear[rank])
            # All that it should hold: not the cheapest, but what costs the mean.
            if 0 < window.length == length:
                window = circle.closest(length, mean, step_of(mean))
        taken.append([(row, row + 1) for row in dear[rank]] + circle.take(window))
    return of_taken(taken, costs.numel())


def spread_rows(costs: Tensor, rows: Sequence[int], world_size: int) -> list[list[int]]:
    """Each row for the rank with the least so far, the dearest first; rows of equal cost are then handed out in ascending order."""
    cost_of = dict(zip(rows, costs[rows].tolist()))
    least = [(0, rank) for rank in range(world_size)]
    ranks_of: dict[int, list[int]] = defaultdict(list)
    for cost in sorted(cost_of.values(), reverse=True):
        so_far, rank = least[0]
        heapq.heapreplace(least, (so_far + cost, rank))
        ranks_of[cost].append(rank)
    ranks = {cost: iter(sorted(found)) for cost, found in ranks_of.items()}
    spread: list[list[int]] = [[] for _ in range(world_size)]
    for row in sorted(rows):
        spread[next(ranks[cost_of[row]])].append(row)
    return spread


def between(rows: Sequence[int], n_blocks: int) -> list[tuple[int, int]]:
    """The ranges of blocks without these rows."""
    bounds = [-1, *sorted(rows), n_blocks]
    return [(before + 1, row) for before, row in itertools.pairwise(bounds) if before + 1 < row]


def of_taken(taken: Sequence[Sequence[tuple[int, int]]], n_blocks: int) -> Chunks:
    """The chunks of ranges in any order: ranges that touch joined, the owner of the last block the last rank."""
    chunks = [joined(sorted(ranges)) for ranges in taken]
    chunks.sort(key=lambda mine: mine[-1][1] == n_blocks)  # stable: the others stay in order
    return tuple(chunks)
