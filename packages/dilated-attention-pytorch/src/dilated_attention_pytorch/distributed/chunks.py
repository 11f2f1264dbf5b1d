"""Chunked: what shardings have in common, whose ranks hold ranges of blocks."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .. import values
from .._torch_internals import without_any_modes
from .balance import Chunks, owners_of


class Chunked:
    """Blocks in a fixed order, each of which belongs to one rank.

    A rank's tokens are those of its chunks, one after another.
    """

    chunks: Chunks
    seq_len: int
    block_size: int
    rank: int

    @property
    def n_blocks(self) -> int:
        raise NotImplementedError

    def tokens_of(self, blocks: Tensor) -> Tensor:
        """Tokens of each of these blocks, int64 as they are."""
        raise NotImplementedError

    def token_ranges(self, rank: int) -> tuple[tuple[int, int], ...]:
        """The chunks of a rank in tokens: (first, one behind the last); ValueError if there is no such rank."""
        raise NotImplementedError

    @property
    def world_size(self) -> int:
        return len(self.chunks)

    def checked_rank(self, rank: object) -> int:
        """The rank as an int; TypeError or ValueError unless it is one of the sharding's."""
        number = values.integer(rank)
        if number is None or not 0 <= number < self.world_size:
            raise values.wrong(number, f"rank must be 0 to {self.world_size - 1}, got {values.shown(rank)}")
        return number

    @property
    def local_len(self) -> int:
        """Tokens of this rank."""
        return self.local_lens[self.rank]

    @cached_property
    def local_lens(self) -> tuple[int, ...]:
        """Tokens of every rank."""
        return tuple(
            sum(stop - first for first, stop in self.token_ranges(i)) for i in range(self.world_size)
        )

    @without_any_modes()
    def rank_of_block(self) -> Tensor:
        """The owner of every block, int64 (n_blocks,) on the CPU."""
        return owners_of(self.chunks, self.n_blocks)

    @without_any_modes()
    def blocks_of(self, rank: int) -> Tensor:
        """The blocks of a rank, int64 (n,) on the CPU, ascending; ValueError if there is no such rank."""
        return torch.cat([torch.arange(first, stop) for first, stop in self.chunks[self.checked_rank(rank)]])
