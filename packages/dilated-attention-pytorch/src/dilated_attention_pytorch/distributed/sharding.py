"""SequenceSharding: which tokens of a sequence each rank holds; a tensor cut into them, and put together again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import values
from .._torch_internals import not_traced, without_any_modes
from ..caching import BoundedCache, make_once
from ..config import check_block_size
from ..grid import BlockGrid
from ..layout import BlockLayout
from .balance import Chunks, chunks_of, imbalance, row_costs
from .checks import check_config, check_sharding
from .chunks import Chunked
from .config import DistributedSparseConfig


@dataclass(frozen=True)
class SequenceSharding(Chunked):
    """Which blocks of a sequence each rank holds. Immutable and hashable; make one with `from_layout` or `make`.

    Every block belongs to one rank, the last one to the last rank. A rank's tokens are those of its chunks, one after another.

    Attributes:
        chunks: per rank its ranges (first block, one behind the last), ascending; none touches the one before.
        seq_len: tokens of the whole sequence; the last block may be short.
        block_size: tokens per block.
        rank: this rank.

    Raises:
        ValueError: a number is out of its range, the chunks are not of this kind, or the rank is not one of theirs.
        TypeError: the chunks are no pairs of ints.
    """

    chunks: Chunks
    seq_len: int
    block_size: int
    rank: int
    # int64 positions by device
    _positions: BoundedCache = field(
        default_factory=lambda: BoundedCache(4), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "seq_len", check_seq_len(self.seq_len))
        object.__setattr__(self, "block_size", check_block_size(self.block_size))
        object.__setattr__(self, "chunks", checked_chunks(self.chunks))
        check_ranks(self.seq_len, self.block_size, len(self.chunks))
        check_chunks(self.chunks, self.n_blocks)
        object.__setattr__(self, "rank", self.checked_rank(self.rank))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.chunks, self.seq_len, self.block_size, self.rank))

    @classmethod
    def make(
        cls, chunks: Sequence[Sequence[Sequence[int]]], seq_len: int, block_size: int, rank: int
    ) -> SequenceSharding:
        """A sharding of your own; no process group is needed."""
        return cls(checked_chunks(chunks), seq_len, block_size, rank)

    @classmethod
    def from_layout(
        cls, layout: BlockLayout | Sequence[BlockLayout], config: DistributedSparseConfig
    ) -> SequenceSharding:
        """The sharding that `config.balance` gives, from one layout or those of several layers together.

        Raises:
            ValueError: queries and keys are not the same tokens, the layouts differ in length or block size, or there are
                more ranks than blocks.
            TypeError: `layout` or `config` is something else.
        """
        several = checked_layouts(layout)
        check_config(config)
        grid = several[0].grid
        check_ranks(grid.q_len, grid.block_size, config.world_size)
        with without_any_modes():
            chunks = chunks_of(config.balance, row_costs(several), config.world_size)
        return cls(chunks, grid.q_len, grid.block_size, config.rank)

    @classmethod
    def from_length(
        cls,
        seq_len: int,
        block_size: int,
        config: DistributedSparseConfig,
        *,
        num_blocks: int | None = None,
        causal: bool = False,
    ) -> SequenceSharding:
        """The sharding that `config.balance` gives where no layout is known: every row attends to as many blocks.

        Args:
            seq_len: tokens of the whole sequence.
            block_size: tokens per block.
            config: the processes, and the balance.
            num_blocks: blocks of a row, as in `select_blocks`. Default: all.
            causal: a row has no more than there are up to its own.

        Raises:
            ValueError: a number is out of its range, or there are more ranks than blocks.
            TypeError: an argument is something else.
        """
        check_config(config)
        check_seq_len(seq_len)
        grid = BlockGrid(seq_len, seq_len, block_size, causal)
        most = grid.n_rows if num_blocks is None else values.tokens(num_blocks)
        if most is None:
            raise values.wrong(
                values.integer(num_blocks),
                f"num_blocks must be a number of blocks, at least 1, got {values.shown(num_blocks)}",
            )
        check_ranks(grid.q_len, grid.block_size, config.world_size)
        rows = torch.arange(1, grid.n_rows + 1) if causal else torch.full((grid.n_rows,), grid.n_rows)
        chunks = chunks_of(config.balance, rows.clamp(max=most), config.world_size)
        return cls(chunks, grid.q_len, grid.block_size, config.rank)

    @property
    def n_blocks(self) -> int:
        return -(-self.seq_len // self.block_size)

    def tokens_of(self, blocks: Tensor) -> Tensor:
        """Tokens of each of these blocks; the last of the sequence may have fewer."""
        return (self.seq_len - blocks * self.block_size).clamp(max=self.block_size)

    def imbalance(self, layout: BlockLayout | Sequence[BlockLayout]) -> float:
        """By how much the rank with the most active blocks has more of them than the mean, as a share of the mean.

        At most 0.03 with ``balance="cost"``, if the ranks have enough rows to choose from and no row has more active blocks
        than a rank's share.

        Raises:
            ValueError: the layout is of another length or block size.
        """
        several = checked_layouts(layout)
        grid = several[0].grid
        if (grid.q_len, grid.block_size) != (self.seq_len, self.block_size):
            raise ValueError(
                f"layout must be of {self.seq_len} tokens in blocks of {self.block_size} as the sharding is, got {grid.q_len} "
                f"in blocks of {grid.block_size}"
            )
        with without_any_modes():
            return imbalance(self.chunks, row_costs(several))

    def token_ranges(self, rank: int) -> tuple[tuple[int, int], ...]:
        """The chunks of a rank in tokens: (first, one behind the last); ValueError if there is no such rank."""
        size, mine = self.block_size, self.chunks[self.checked_rank(rank)]
        return tuple((first * size, min(stop * size, self.seq_len)) for first, stop in mine)

    @not_traced
    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """The position in the whole sequence of each token of this rank, int64 (local_len,), default on the CPU.

        It is kept, so do not write to it.
        """
        target = torch.empty(
            0, device=values.device(device)
        ).device  # with its index, "cuda" is the current one
        return make_once(self._positions, target, target, lambda: self._made_positions(target))

    def _made_positions(self, device: torch.device) -> Tensor:
        ranges = self.token_ranges(self.rank)
        return torch.cat([torch.arange(first, stop, device=device) for first, stop in ranges])

    def block_rows(self, device: torch.device | str | None = None) -> Tensor:
        """The block of the whole sequence that each block of this rank is, int64 (n,), default on the CPU; never waits."""
        return self.positions(device)[:: self.block_size] // self.block_size


def check_seq_len(seq_len: Any) -> int:
    """The length as an int; TypeError or ValueError unless it is a number of tokens."""
    tokens = values.tokens(seq_len)
    if tokens is None:
        raise values.wrong(
            values.integer(seq_len),
            f"seq_len must be a positive int below 2**31, got {values.shown(seq_len)}",
        )
    return tokens


def check_ranks(seq_len: int, block_size: int, world_size: int) -> None:
    """Raise unless there is a block for every rank."""
    n_blocks = -(-seq_len // block_size)
    if n_blocks < world_size:
        raise ValueError(
            f"seq_len {seq_len} has {n_blocks} blocks of block_size {block_size}, too few for {world_size} ranks: each holds at "
            f"least one; use at most {n_blocks} ranks or a smaller block_size"
        )


def checked_chunks(chunks: Any) -> Chunks:
    """The chunks as tuples of ints.

    Raises:
        TypeError: they are no (first, stop) for each chunk of each rank, or these are no ints.
        ValueError: there are none.
    """
    of_ranks = values.items(chunks)
    if of_ranks is None:
        raise TypeError(
            f"chunks must hold for each rank its ranges (first, stop) of blocks, got {values.shown(chunks)}"
        )
    if not of_ranks:
        raise ValueError("chunks must hold the ranges of one rank or more, got none")
    return tuple(checked_ranges(mine, rank) for rank, mine in enumerate(of_ranks))


def checked_ranges(mine: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """The chunks of a rank as tuples of ints."""
    ranges = values.items(mine)
    pairs = None if ranges is None else [values.items(pair) for pair in ranges]
    if pairs is None or any(pair is None or len(pair) != 2 for pair in pairs):
        raise TypeError(
            f"chunks[{rank}] must be ranges (first, stop) of blocks, such as [(0, 4), (9, 12)], got "
            f"{values.shown(mine)}"
        )
    found = [tuple(map(values.integer, pair)) for pair in pairs if pair is not None]
    numbers = [(first, stop) for first, stop in found if first is not None and stop is not None]
    if len(numbers) < len(found):
        raise TypeError(
            f"chunks[{rank}] must be ranges (first, stop) of whole blocks, as ints, got {values.shown(mine)}"
        )
    return tuple(numbers)


def check_chunks(chunks: Chunks, n_blocks: int) -> None:
    """Raise unless the chunks are a partition of the blocks, each rank's are ascending, and the last block is the last rank's."""
    for rank, mine in enumerate(chunks):
        bounds = list(itertools.chain.from_iterable(mine))
        if not bounds or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"chunks[{rank}] must be ascending ranges (first, stop) of blocks with others between them, at least one, "
                f"got {values.shown(mine)}"
            )
    in_order = sorted(itertools.chain.from_iterable(chunks))
    ends = [0, *(stop for _, stop in in_order)]
    if [first for first, _ in in_order] != ends[:-1] or ends[-1] != n_blocks:
        raise ValueError(f"chunks must hold each of the blocks 0 to {n_blocks - 1} once")
    if chunks[-1][-1][1] != n_blocks:
        raise ValueError("the last block must belong to the last rank; number the ranks so that it does")


def checked_layouts(layout: Any) -> tuple[BlockLayout, ...]:
    """The layouts as a tuple, of one length and block size.

    Raises:
        TypeError: something else than layouts. ValueError: see `SequenceSharding.from_layout`.
    """
    several = (layout,) if isinstance(layout, BlockLayout) else values.items(layout)
    if not several or not all(isinstance(each, BlockLayout) for each in several):
        raise TypeError(f"layout must be a BlockLayout or a sequence of them, got {values.shown(layout)}")
    for each in several:
        if not each.grid.is_square:
            raise ValueError(
                f"layout must be of the same tokens as queries and keys, got q_len {each.grid.q_len} and kv_len "
                f"{each.grid.kv_len} with q_offset {each.grid.q_offset}"
            )
    kinds = sorted({(each.grid.q_len, each.grid.block_size) for each in several})
    if len(kinds) > 1:
        raise ValueError(f"the layouts must have one length and block size, got (tokens, block_size) {kinds}")
    return several


def checked_dim(x: Any, dim: Any, length: int, what: str) -> int:
    """The dimension as a number from 0.

    Raises:
        TypeError: x is no tensor, or dim no int. ValueError: x does not have this length there.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {values.shown(x)}; use torch.as_tensor(x)")
    number = values.integer(dim)
    if number is None:
        raise TypeError(f"dim must be an int, the dimension of the tokens in x, got {values.shown(dim)}")
    if x.dim() == 0:
        raise ValueError("x must have a dimension of tokens, got a tensor of shape ()")
    if not -x.dim() <= number < x.dim():
        raise ValueError(
            f"dim must be {-x.dim()} to {x.dim() - 1} for x of shape {tuple(x.shape)}, got {number}"
        )
    if x.shape[number] != length:
        raise ValueError(
            f"x must have {what} {length} tokens in dim {number}, got {x.shape[number]} (shape {tuple(x.shape)})"
        )
    return number % x.dim()


def shard_sequence(x: Tensor, sharding: Chunked, dim: int = 1) -> Tensor:
    """This rank's tokens of a whole tensor; differentiable, a view where the rank has one chunk.

    Args:
        x: any tensor with all `seq_len` tokens in dimension `dim`.
        sharding: a `SequenceSharding` or `PackedSharding`.
        dim: the dimension of the tokens.

    Raises:
        ValueError: x has another number of tokens there.
        TypeError: an argument is something else; the message names it.
    """
    check_sharding(sharding)
    dim = checked_dim(x, dim, sharding.seq_len, "the seq_len of the sharding,")
    parts = [x.narrow(dim, first, stop - first) for first, stop in sharding.token_ranges(sharding.rank)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
