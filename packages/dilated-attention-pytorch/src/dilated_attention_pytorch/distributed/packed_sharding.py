"""PackedSharding: which tokens each rank holds of sequences that lie one behind the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import values
from .._torch_internals import not_traced, without_any_modes
from ..caching import BoundedCache, make_once
from ..config import check_block_size
from ..layout import BlockLayout
from ..validation.numbers import check_is_causal
from ..validation.sequences import INT_TYPES
from .balance import Chunks, chunks_of
from .checks import check_config
from .chunks import Chunked
from .copies import copied_to
from .row_index import index_of
from .sharding import check_chunks, checked_chunks, checked_layouts
from .whole_sequences import ending_with_sequences

if TYPE_CHECKING:
    from .config import DistributedSparseConfig


class Blocks(NamedTuple):
    """The blocks of all sequences in the order of the stream, int64 (n_blocks,) each, on the CPU."""

    sequence: Tensor
    of_sequence: Tensor
    """The block within its sequence."""
    start: Tensor
    """Its first token in the stream."""
    tokens: Tensor
    """How many it has; the last one of every sequence may have fewer than others."""


@dataclass(frozen=True)
class PackedSharding(Chunked):
    """Which blocks of packed sequences each rank holds. Immutable and hashable; make one with `from_sequences`.

    The blocks of a sequence begin at its first token, and the last of each sequence may be short. They are counted in the order
    of the stream of sequences, over all of them. Every block belongs to one rank. Used like a `SequenceSharding` by
    `shard_sequence` and `unshard_sequence`, with the dimension of the tokens as `dim`.

    Attributes:
        chunks: per rank its ranges (first block, one behind the last), ascending; none touches the one before.
        cu_seqlens: where each sequence begins, and the end of the last.
        block_size: tokens per block.
        rank: this rank.
        seq_len: tokens of all sequences together.

    Raises:
        ValueError: a number is out of its range, the chunks are not of this kind, or the rank is not one of theirs.
        TypeError: the chunks or offsets are no ints.
    """

    chunks: Chunks
    cu_seqlens: tuple[int, ...]
    block_size: int
    rank: int
    seq_len: int = field(init=False, repr=False, compare=False)
    # int64 positions and indices by device
    _kept: BoundedCache = field(
        default_factory=lambda: BoundedCache(8), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "cu_seqlens", checked_offsets(self.cu_seqlens))
        object.__setattr__(self, "seq_len", self.cu_seqlens[-1])
        object.__setattr__(self, "block_size", check_block_size(self.block_size))
        object.__setattr__(self, "chunks", checked_chunks(self.chunks))
        check_ranks(self, len(self.chunks))
        check_chunks(self.chunks, self.n_blocks)
        object.__setattr__(self, "rank", self.checked_rank(self.rank))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.chunks, self.cu_seqlens, self.block_size, self.rank))

    @classmethod
    def from_sequences(
        cls,
        cu_seqlens: Sequence[int] | Tensor,
        layout: BlockLayout | Sequence[BlockLayout],
        config: DistributedSparseConfig,
        *,
        is_causal: bool = False,
    ) -> PackedSharding:
        """The sharding that `config.balance` gives, from one layout or those of several layers together.

        Whole sequences stay on one rank where they can: a rank's share ends with a sequence, unless a rank would then
        have over 3 % more tokens or active blocks than the mean.

        Args:
            cu_seqlens: where each sequence begins, and the end of the last: ints, or an int tensor on the CPU, alike on every
                rank. An empty sequence is one of length 0.
            layout: for the positions of the longest sequence or more.
            config: the processes.
            is_causal: of the calls: it changes the costs of the rows.

        Raises:
            ValueError: the offsets do not begin with 0 or decrease, a sequence is longer than a layout, queries and keys of a
                layout are not the same tokens, the layouts differ in length or block size, or there are more ranks than
                blocks.
            TypeError: `cu_seqlens` is on a GPU, or an argument is something else.
        """
        several = checked_layouts(layout)
        check_config(config)
        check_is_causal(is_causal)
        check_one_for_all(several)
        offsets = checked_offsets(cu_seqlens)
        grid, world_size = several[0].grid, config.world_size
        check_within(longest_of(offsets), several[0])
        alone = ((0, n_blocks_of(offsets, grid.block_size)),)
        whole = cls((alone,), offsets, grid.block_size, 0)
        check_ranks(whole, world_size)
        if world_size == 1:
            return whole
        with without_any_modes():
            blocks, costs = whole.blocks, costs_of(whole.blocks, several, is_causal)
            chunks = chunks_of(config.balance, costs, world_size)
            chunks = ending_with_sequences(chunks, blocks.sequence, blocks.tokens, costs)
        made = cls(chunks, offsets, grid.block_size, config.rank)
        made.__dict__["blocks"] = whole.blocks
        return made

    @property
    def n_sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    @cached_property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence."""
        return longest_of(self.cu_seqlens)

    @cached_property
    def n_blocks(self) -> int:
        """Blocks of all sequences."""
        return n_blocks_of(self.cu_seqlens, self.block_size)

    @cached_property
    @without_any_modes()
    def blocks(self) -> Blocks:
        """All blocks."""
        offsets, size = torch.tensor(self.cu_seqlens), self.block_size
        lengths = offsets.diff()
        n_of_each = (lengths + size - 1) // size
        sequence = torch.repeat_interleave(torch.arange(lengths.numel()), n_of_each)
        of_sequence = torch.arange(self.n_blocks) - (n_of_each.cumsum(0) - n_of_each)[sequence]
        tokens = (lengths[sequence] - of_sequence * size).clamp(max=size)
        return Blocks(sequence, of_sequence, offsets[sequence] + of_sequence * size, tokens)

    @cached_property
    @without_any_modes()
    def is_split(self) -> Tensor:
        """Whether blocks of a sequence are on several ranks, bool (n_sequences,) on the CPU."""
        owner, sequence = self.rank_of_block(), self.blocks.sequence
        is_cut = (owner[1:] != owner[:-1]) & (sequence[1:] == sequence[:-1])
        split = torch.zeros(self.n_sequences, dtype=torch.bool)
        split[sequence[1:][is_cut]] = True
        return split

    def tokens_of(self, blocks: Tensor) -> Tensor:
        """Tokens of each of these blocks."""
        return self.blocks.tokens[blocks]

    def token_ranges(self, rank: int) -> tuple[tuple[int, int], ...]:
        """The chunks of a rank in tokens of the stream, as those of a `SequenceSharding`."""
        start, tokens, mine = self.blocks.start, self.blocks.tokens, self.chunks[self.checked_rank(rank)]
        return tuple((int(start[first]), int(start[stop - 1] + tokens[stop - 1])) for first, stop in mine)

    @not_traced
    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """The position within its sequence of each token of this rank, int64 (local_len,), default on the CPU.

        What rotary embeddings need. It is kept, so do not write to it.
        """
        return self._on(device, "positions", lambda: self._tokens(self.blocks.of_sequence * self.block_size))

    @not_traced
    def indices(self, device: torch.device | str | None = None) -> Tensor:
        """The index in the stream of each token of this rank, int64 (local_len,), default on the CPU.

        It is kept, so do not write to it.
        """
        return self._on(device, "indices", lambda: self._tokens(self.blocks.start))

    @without_any_modes()
    def _tokens(self, of_first: Tensor) -> Tensor:
        """A number for each token of this rank that is given for the first token of each block, and counts on from there."""
        mine = self.blocks_of(self.rank)
        counts = self.blocks.tokens[mine]
        first = of_first[mine] - (counts.cumsum(0) - counts)
        return torch.repeat_interleave(first, counts) + torch.arange(self.local_len)

    def _on(self, device: torch.device | str | None, name: str, make: Any) -> Tensor:
        # with its index: "cuda" is the current one
        target = torch.empty(0, device=values.device(device)).device
        made: Tensor = make_once(self._kept, (name, target), target, lambda: copied_to(make(), target))
        return made


def n_blocks_of(offsets: Sequence[int], block_size: int) -> int:
    """Blocks of all sequences."""
    return sum(-((a - b) // block_size) for a, b in itertools.pairwise(offsets))


def longest_of(offsets: Sequence[int]) -> int:
    """Tokens of the longest sequence."""
    return max((b - a for a, b in itertools.pairwise(offsets)), default=0)


def costs_of(blocks: Blocks, layouts: Sequence[BlockLayout], is_causal: bool) -> Tensor:
    """Active blocks of the row of each block, int64 (n_blocks,): over the heads of all layouts, which weigh alike.

    Columns behind the end of the sequence, and causal those after the row's own, do not count.
    """
    n_shared = math.lcm(*(layout.num_heads for layout in layouts))
    costs = torch.zeros(blocks.sequence.numel(), dtype=torch.int64)
    ends = visible_end(blocks, is_causal)
    for layout in layouts:
        index, heads = index_of(layout), torch.arange(layout.num_heads)
        lists = heads[:, None] * layout.grid.n_rows + blocks.of_sequence
        costs += index.numbers(lists, ends.expand_as(lists)).sum(0) * (n_shared // layout.num_heads)
    return costs


def visible_end(blocks: Blocks, is_causal: bool) -> Tensor:
    """For each block the first block of its sequence that it cannot see, and none after that."""
    if is_causal:
        return blocks.of_sequence + 1
    n_of_each = torch.bincount(blocks.sequence)
    return n_of_each[blocks.sequence]


# ---- checks


def checked_offsets(cu_seqlens: Any) -> tuple[int, ...]:
    """The offsets as ints."""
    if isinstance(cu_seqlens, Tensor):
        if cu_seqlens.device.type != "cpu":
            raise TypeError(
                f"cu_seqlens must be ints or a tensor on the CPU, got one on {cu_seqlens.device}: reading it would wait for the "
                "GPU; keep the copy on the CPU from which it was made"
            )
        if cu_seqlens.dtype not in INT_TYPES or cu_seqlens.dim() != 1:
            raise ValueError(
                f"cu_seqlens must be int with shape (sequences + 1,), got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
        offsets: tuple[Any, ...] = tuple(cu_seqlens.tolist())
    else:
        found = values.items(cu_seqlens)
        if found is None:
            raise TypeError(
                f"cu_seqlens must be a sequence of ints or a tensor on the CPU, got {values.shown(cu_seqlens)}"
            )
        offsets = found if all(type(x) is int for x in found) else tuple(map(values.integer, found))
        if None in offsets:
            raise TypeError(f"cu_seqlens must be ints, got {values.shown(found[offsets.index(None)])}")
    if not offsets or offsets[0] != 0 or any(a > b for a, b in itertools.pairwise(offsets)):
        raise ValueError(
            f"cu_seqlens must begin with 0 and never decrease, got {values.shown(list(offsets))}; it holds where each sequence "
            "begins, and the end of the last"
        )
    if offsets[-1] > values.MAX_TOKENS:
        raise ValueError(f"cu_seqlens must be below 2**31, got {offsets[-1]}")
    return offsets


def check_one_for_all(layouts: Sequence[BlockLayout]) -> None:
    """Raise unless all sequences share the lists of a layout."""
    for layout in layouts:
        if layout.batch != 1:
            raise ValueError(f"layout must have batch 1, one for all sequences, got {layout.batch}")


def check_within(longest: int, layout: BlockLayout) -> None:
    """Raise if the longest sequence is longer than a layout."""
    if longest > layout.q_len:
        raise ValueError(
            f"layout covers {layout.q_len} positions, but the longest sequence in cu_seqlens has {longest} tokens; make it for "
            "these or more"
        )


def check_ranks(sharding: PackedSharding, world_size: int) -> None:
    """Raise unless there is a block for every rank."""
    if sharding.n_blocks < world_size:
        raise ValueError(
            f"cu_seqlens has {sharding.n_blocks} blocks of block_size {sharding.block_size}, too few for {world_size} ranks: "
            f"each holds at least one; pack more sequences, use fewer ranks or a smaller block_size"
        )
