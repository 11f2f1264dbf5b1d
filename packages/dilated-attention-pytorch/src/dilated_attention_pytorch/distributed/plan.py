"""The exchange plan: which blocks a rank fetches from which, and which it sends, by index arithmetic alone.

Every rank computes it from the layout and the sharding, so nothing about it is communicated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout.layout import BlockLayout
from .chunks import Chunked

MOST_FLAGS = 2**28  # ranks x blocks up to which needs are found with a flag for each, else by sorting


class Blocks(NamedTuple):
    """Active blocks of a layout, int64 (n,) each, in the order of its row lists."""

    head: Tensor
    """Counted over the batch elements."""
    row: Tensor
    col: Tensor
    place: Tensor
    """In the row lists of the layout."""

    def taken(self, which: Tensor) -> Blocks:
        """Those of a mask."""
        return Blocks(*(x[which] for x in self))


def blocks_of(layout: BlockLayout, heads: range | None = None, is_causal: bool = False) -> Blocks:
    """The active blocks of these heads of a layout, which then count from 0; causal: none after the row's own."""
    head, row, col = layout.coo()
    blocks = Blocks(head, row, col, torch.arange(row.numel(), device=row.device))
    if heads is not None and len(heads) != layout.num_heads:
        of_element = head % layout.num_heads
        blocks = blocks.taken((of_element >= heads.start) & (of_element < heads.stop))
        of_element = blocks.head % layout.num_heads - heads.start
        blocks = blocks._replace(head=blocks.head // layout.num_heads * len(heads) + of_element)
    if is_causal:  # also of a causal layout, whose mask may name them
        blocks = blocks.taken(blocks.col <= blocks.row)
    return blocks


def needed_blocks(row: Tensor, col: Tensor, sharding: Chunked) -> Tensor:
    """The blocks that each rank needs of others, as ascending ``rank * n_blocks + block``; int64 on the CPU."""
    owner = sharding.rank_of_block().to(row.device)
    n_blocks, world_size = owner.numel(), sharding.world_size
    needer = owner[row]
    is_remote = needer != owner[col]
    keys = needer[is_remote] * n_blocks + col[is_remote]
    if world_size * n_blocks > MOST_FLAGS:
        found: Tensor = keys.unique()
        return found.cpu()
    flags = torch.zeros(world_size * n_blocks, dtype=torch.bool, device=row.device)
    flags[keys] = True
    return flags.nonzero().squeeze(1).cpu()


@dataclass(frozen=True, eq=False)
class Transfers:
    """How much one rank fetches and sends.

    Attributes:
        rank: which one.
        fetched_tokens: tokens that come from each rank.
        sent_tokens: tokens that go to each rank.
        is_local: whether no rank needs a block of another.
    """

    rank: int
    fetched_tokens: tuple[int, ...]
    sent_tokens: tuple[int, ...]
    is_local: bool

    @property
    def num_fetched_tokens(self) -> int:
        return sum(self.fetched_tokens)

    @property
    def num_sent_tokens(self) -> int:
        return sum(self.sent_tokens)


@dataclass(frozen=True, eq=False)
class ExchangePlan(Transfers):
    """What one rank fetches and sends.

    Attributes:
        fetched: the blocks that it fetches, by the rank that has them and then ascending; int64 on the CPU, as `sent`.
        sent: the blocks that it sends, by the rank that needs them and then ascending.
    """

    fetched: Tensor
    sent: Tensor

    @classmethod
    def of_needed(cls, needed: Tensor, sharding: Chunked, rank: int | None = None) -> ExchangePlan:
        """The plan of a rank, default that of the sharding, for what `needed_blocks` found."""
        rank = sharding.rank if rank is None else rank
        owner = sharding.rank_of_block()
        needer, block = needed // owner.numel(), needed % owner.numel()
        fetched = block[needer == rank]
        fetched = fetched[owner[fetched].argsort(stable=True)]
        is_own = owner[block] == rank
        sent, to = block[is_own], needer[is_own]
        return cls(
            rank=rank,
            fetched=fetched,
            sent=sent,
            fetched_tokens=tokens_by_rank(fetched, owner[fetched], sharding),
            sent_tokens=tokens_by_rank(sent, to, sharding),
            is_local=needed.numel() == 0,
        )

    @classmethod
    def make(
        cls, layout: BlockLayout, sharding: Chunked, is_causal: bool = False, rank: int | None = None
    ) -> ExchangePlan:
        """The plan of all heads of a layout."""
        blocks = blocks_of(layout, None, is_causal)
        return cls.of_needed(needed_blocks(blocks.row, blocks.col, sharding), sharding, rank)


def tokens_by_rank(blocks: Tensor, ranks: Tensor, sharding: Chunked) -> tuple[int, ...]:
    """The tokens of the blocks of each rank."""
    counts = torch.zeros(sharding.world_size, dtype=torch.int64)
    counts.index_add_(0, ranks, sharding.tokens_of(blocks))
    return tuple(counts.tolist())
