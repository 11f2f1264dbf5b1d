"""ExchangeCounts: what every rank holds and fetches, from the pattern alone: no process group, no GPU, no whole layout.

The rows of a causal pattern do not depend on what follows them, so they are made for a few ranks at a time. Memory stays at
some bytes per block of the sequence, however many blocks are active.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dilated_attention_pytorch.config import SparsePatternConfig
from dilated_attention_pytorch.distributed.balance import chunks_of
from dilated_attention_pytorch.distributed.sharding import SequenceSharding, check_ranks
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.patterns.registry import active_pairs, budget_of

CPU = torch.device("cpu")
MOST_PAIRS = 2**23  # active blocks that are made at a time
MOST_WHOLE = 2**26  # of a layout that is not causal, which is made at once: about 4 GB
MOST_FLAGS = 2**28  # ranks x blocks of the sequence, a byte each


@dataclass(frozen=True)
class ExchangeCounts:
    """Int64 tensors on the CPU. Near are the ranks of the same host, far are the others.

    Attributes:
        ranks: those whose needs were counted, ascending; all, or a sample.
        tokens: (world_size,), tokens that each rank holds.
        active: (world_size,), active blocks in the rows of each rank.
        diagonal: (world_size,), how many of them are on the diagonal.
        fetched_near, fetched_far: (len(ranks),), tokens that come to each of `ranks`.
        sources: (len(ranks),), the number of ranks that they come from.
        sent_near, sent_far: (world_size,), tokens that go out of each rank to those of `ranks`.
    """

    ranks: Tensor
    tokens: Tensor
    active: Tensor
    diagonal: Tensor
    fetched_near: Tensor
    fetched_far: Tensor
    sources: Tensor
    sent_near: Tensor
    sent_far: Tensor

    @property
    def is_sample(self) -> bool:
        return self.ranks.numel() < self.tokens.numel()

    @property
    def fetched(self) -> Tensor:
        return self.fetched_near + self.fetched_far

    @property
    def sent_of_ranks(self) -> Tensor:
        """Tokens that go out of each of `ranks`; of a sample not known, and taken for what it fetches."""
        return self.fetched if self.is_sample else self.sent_near + self.sent_far


def rows_kept(config: SparsePatternConfig, grid: BlockGrid) -> Tensor:
    """Active blocks of every row of a square grid, int64 (n_rows,), without making them."""
    budget = budget_of(config, grid)
    if budget is None:
        raise ValueError("a pattern with window_size has no budget per row; give a sparsity_ratio")
    return budget.blocks()


def make_sharding(
    config: SparsePatternConfig, grid: BlockGrid, balance: str, world_size: int
) -> SequenceSharding:
    """Who holds which blocks, as for the whole layout of the pattern.

    Raises:
        ValueError: there are fewer blocks than ranks.
    """
    check_ranks(grid.q_len, grid.block_size, world_size)
    chunks = chunks_of(balance, rows_kept(config, grid), world_size)
    return SequenceSharding(chunks, grid.q_len, grid.block_size, 0)


def sampled(world_size: int, sample: int | None) -> list[int]:
    """The ranks to count: all, or some that are spread evenly, the first and the last among them."""
    if sample is None or sample >= world_size:
        return list(range(world_size))
    return sorted({round(place * (world_size - 1) / max(1, sample - 1)) for place in range(sample)})


def count_exchange(
    config: SparsePatternConfig,
    grid: BlockGrid,
    sharding: SequenceSharding,
    ranks_per_host: int,
    ranks: Sequence[int],
) -> ExchangeCounts:
    """Count what `ranks` need of all others.

    Args:
        config: the pattern of all heads.
        grid: square.
        sharding: of its rows.
        ranks_per_host: ranks 0 to this - 1 are on the first host, and so on.
        ranks: ascending.

    Raises:
        ValueError: a pattern that is not causal has too many blocks.
    """
    kept = rows_kept(config, grid)
    owner, world_size = sharding.rank_of_block(), sharding.world_size
    host = torch.arange(world_size) // ranks_per_host
    active = torch.zeros(world_size, dtype=torch.int64).index_add_(0, owner, kept)
    fetched = torch.zeros(2, len(ranks), dtype=torch.int64)  # near, far
    sources = torch.zeros(len(ranks), dtype=torch.int64)
    sent = torch.zeros(2, world_size, dtype=torch.int64)
    place = {rank: i for i, rank in enumerate(ranks)}
    for rank, blocks in needs(config, grid, sharding, ranks, kept):
        tokens = tokens_by_rank(blocks, owner, sharding)
        tokens[rank] = 0
        far = host != host[rank]
        for which, here in enumerate((~far, far)):
            fetched[which, place[rank]] = tokens[here].sum()
            sent[which] += tokens * here
        sources[place[rank]] = tokens.count_nonzero()
    return ExchangeCounts(
        ranks=torch.tensor(ranks),
        tokens=torch.tensor(sharding.local_lens),
        active=active,
        diagonal=owner.bincount(minlength=world_size),
        fetched_near=fetched[0],
        fetched_far=fetched[1],
        sources=sources,
        sent_near=sent[0],
        sent_far=sent[1],
    )


def tokens_by_rank(blocks: Tensor, owner: Tensor, sharding: SequenceSharding) -> Tensor:
    """The tokens of ascending blocks, by their owners."""
    size, last = sharding.block_size, sharding.n_blocks - 1
    tokens = owner[blocks].bincount(minlength=sharding.world_size) * size
    if blocks.numel() and int(blocks[-1]) == last:
        tokens[owner[last]] -= sharding.n_blocks * size - sharding.seq_len
    return tokens


def needs(
    config: SparsePatternConfig,
    grid: BlockGrid,
    sharding: SequenceSharding,
    ranks: Sequence[int],
    kept: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """Every rank with the blocks that its rows see, its own among them, ascending; in any order of ranks."""
    n_blocks, owner = sharding.n_blocks, sharding.rank_of_block()
    until = kept.cumsum(0)
    if not grid.causal and int(until[-1]) > MOST_WHOLE:
        raise ValueError(
            f"{int(until[-1]):,} blocks are kept, and rows that are not causal are made all at once, at most {MOST_WHOLE:,} "
            "blocks; plan it with --causal, a smaller --density or a larger --block"
        )
    # neighbours in the sequence together, as each piece of rows costs a pass over the budget of all rows
    in_order = sorted(ranks, key=lambda rank: sharding.chunks[rank])
    size = max(1, MOST_FLAGS // n_blocks)
    for start in range(0, len(in_order), size):
        group = in_order[start : start + size]
        number = torch.full((sharding.world_size,), -1, dtype=torch.int64)
        number[group] = torch.arange(len(group))
        sees = torch.zeros(len(group) * n_blocks, dtype=torch.bool)
        for rows, cols in pairs_of(config, grid, sharding, group, until):
            of_group = number[owner[rows]]
            here = of_group >= 0
            sees[of_group[here] * n_blocks + cols[here]] = True
        for i, rank in enumerate(group):
            yield rank, sees[i * n_blocks : (i + 1) * n_blocks].nonzero().squeeze(1)


def pairs_of(
    config: SparsePatternConfig,
    grid: BlockGrid,
    sharding: SequenceSharding,
    group: Sequence[int],
    until: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The active (rows, columns) of at least the rows of a group of ranks, in pieces."""
    if not grid.causal:
        yield active_pairs(config, grid, CPU)
        return
    size = grid.block_size
    for first, stop in pieces([chunk for rank in group for chunk in sharding.chunks[rank]], until):
        q_len = min(stop * size, grid.kv_len) - first * size
        rows, cols = active_pairs(config, BlockGrid(q_len, grid.kv_len, size, True, first * size), CPU)
        yield rows + first, cols


def pieces(chunks: Sequence[tuple[int, int]], until: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold the chunks and at most `MOST_PAIRS` active blocks each, or one row; chunks that touch are joined."""
    joined: list[list[int]] = []
    for first, stop in sorted(chunks):
        if joined and joined[-1][1] == first:
            joined[-1][1] = stop
        else:
            joined.append([first, stop])
    for first, end in joined:
        while first < end:
            before = int(until[first - 1]) if first else 0
            stop = min(end, max(first + 1, int(torch.searchsorted(until, before + MOST_PAIRS, right=True))))
            yield first, stop
            first = stop
