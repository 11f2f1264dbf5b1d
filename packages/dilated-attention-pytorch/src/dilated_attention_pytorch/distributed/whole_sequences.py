"""Chunks of packed sequences that end where sequences end: what lies on one rank as a whole needs nothing of others."""

from __future__ import annotations

import torch
from torch import Tensor

from .balance import TOLERANCE, Chunks, in_order


class Bounds:
    """The bounds between chunks of different ranks, which can be moved while no rank gets too much.

    A rank may have `TOLERANCE` per cent more than the mean, or as much as the dearest has had, of tokens and of costs.
    """

    def __init__(self, chunks: Chunks, tokens: Tensor, costs: Tensor) -> None:
        pieces = sorted((first, stop, rank) for rank, mine in enumerate(chunks) for first, stop in mine)
        self.ranks = [rank for _, _, rank in pieces]
        self.ends = [stop for _, stop, _ in pieces]
        weights = torch.stack([tokens, costs], 1)
        self.sums = torch.nn.functional.pad(weights.cumsum(0), (0, 0, 1, 0))
        loads = torch.zeros(len(chunks), 2, dtype=torch.int64)
        of_pieces = self.sums[self.ends].diff(dim=0, prepend=self.sums[:1])
        self.loads = loads.index_add_(0, torch.tensor(self.ranks), of_pieces)
        mean = self.loads.sum(0) * (100 + TOLERANCE) // (100 * len(chunks))
        self.most = torch.maximum(mean, self.loads.max(0).values)

    def move(self, i: int, to: int) -> bool:
        """Move the end of piece i, if both pieces keep a block and neither rank gets too much; whether it was moved."""
        start = self.ends[i - 1] if i else 0
        if not start < to < self.ends[i + 1]:
            return False
        gained = self.sums[to] - self.sums[self.ends[i]]
        loads = self.loads.clone()
        loads[self.ranks[i]] += gained
        loads[self.ranks[i + 1]] -= gained
        if bool((loads > self.most).any()):
            return False
        self.loads, self.ends[i] = loads, to
        return True

    def chunks(self) -> Chunks:
        sizes = [stop - first for first, stop in zip([0, *self.ends], self.ends, strict=False)]
        return in_order(list(zip(self.ranks, sizes, strict=True)))


def ending_with_sequences(chunks: Chunks, sequence: Tensor, tokens: Tensor, costs: Tensor) -> Chunks:
    """The chunks with every end inside a sequence moved to the nearer end of that, or the other, where `Bounds` lets it.

    Args:
        chunks: of blocks in the order of the stream.
        sequence: int64 (n_blocks,) on the CPU, that of each block.
        tokens: int64 (n_blocks,) on the CPU, how many each has.
        costs: int64 (n_blocks,) on the CPU, that of the row of each.
    """
    bounds = Bounds(chunks, tokens, costs)
    inner = torch.tensor(bounds.ends[:-1], dtype=torch.int64)
    first = torch.searchsorted(sequence, sequence[inner])
    stop = torch.searchsorted(sequence, sequence[inner], right=True)
    ways = [
        sorted((abs(to - i), to) for to in pair) for i, *pair in torch.stack([inner, first, stop], 1).tolist()
    ]
    # A short way takes least of what a rank may have.
    for i in sorted(range(len(ways)), key=lambda i: ways[i]):
        if ways[i][0][0]:
            any(bounds.move(i, to) for _, to in ways[i])
    return bounds.chunks()
