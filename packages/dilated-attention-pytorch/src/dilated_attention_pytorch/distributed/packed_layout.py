"""The local layout of packed sequences: each of a rank's parts of a sequence is a sequence of its own.

Only split sequences are here, those with blocks on several ranks. The queries of a part are the rank's own blocks of the
sequence, its keys ``[fetched | own]``: its last query then sits at its last key, as in a causal call, each of its blocks on its
own diagonal, and whatever was fetched for a causal row lies before. Without causality the queries begin at position 0, and a
short block, the last of its sequence, is the last of the keys wherever it comes from.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..grid import BlockGrid
from ..layout.layout import BlockLayout
from .copies import copied_to
from .local_layout import LocalLayout, Offsets, Pieces, listed, returned_to, tokens_within
from .packed_sharding import PackedSharding, visible_end
from .plan import Blocks, ExchangePlan, needed_blocks
from .row_index import index_of, index_of_any, places_of
from .stages import Shape


class Keys(NamedTuple):
    """The keys of a rank's parts, block by block in the order of the parts; int64 (n,) each, on the CPU."""

    block: Tensor
    of_buffer: Tensor
    """Which block of ``[fetched | own]`` it is."""
    part: Tensor
    slot: Tensor
    """Which block of its part."""


class PackedSequences:
    """The source of the stages of a call with split sequences."""

    def __init__(self, layout: BlockLayout, sharding: PackedSharding, shape: Shape) -> None:
        self.layout, self.sharding, self.shape = layout, sharding, shape

    @cached_property
    def first_of_sequence(self) -> Tensor:
        """The first block of the sequence of every block."""
        blocks = self.sharding.blocks
        return torch.arange(self.sharding.n_blocks) - blocks.of_sequence

    @cached_property
    def visible_end(self) -> Tensor:
        return visible_end(self.sharding.blocks, self.shape.is_causal)

    @cached_property
    def own(self) -> Tensor:
        """The rank's blocks of split sequences."""
        mine = self.sharding.blocks_of(self.sharding.rank)
        return mine[self.sharding.is_split[self.sharding.blocks.sequence[mine]]]

    def needed(self, heads: range) -> Tensor:
        index, blocks = index_of_any(self.layout, heads), self.sharding.blocks
        split = self.sharding.is_split[blocks.sequence].nonzero().squeeze(1)
        lists = blocks.of_sequence[split]
        numbers = index.numbers(lists, self.visible_end[split])
        place, which = places_of(index.indptr[lists], numbers, int(numbers.sum()))
        row = split[which]
        return needed_blocks(row, self.first_of_sequence[row] + index.cols[place], self.sharding)

    def local(self, heads: range, plan: ExchangePlan) -> LocalLayout:
        sharding, device, own = self.sharding, self.shape.device, self.own
        size = sharding.block_size
        keys, n_parts = self.keys(plan.fetched)
        buffer = torch.cat([plan.fetched, own])
        ends = sharding.tokens_of(buffer).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])
        counts = sharding.tokens_of(keys.block)
        order = tokens_within(starts[keys.of_buffer], counts, size)
        is_own = keys.of_buffer >= plan.fetched.numel()
        n_slots = int(keys.slot.max()) + 1 if keys.slot.numel() else 1
        grid = BlockGrid(n_slots * size, n_slots * size, size, self.shape.is_causal)
        made, ids = self.lists(heads, grid, keys, is_own, n_parts)
        own_starts = starts[plan.fetched.numel() :] - plan.num_fetched_tokens
        rows = torch.full((sharding.n_blocks,), -1)
        rows[own] = torch.arange(own.numel())
        of_parts = torch.zeros(2, n_parts, dtype=torch.int64)
        of_parts[0].index_add_(0, keys.part[is_own], counts[is_own])
        of_parts[1].index_add_(0, keys.part, counts)
        return LocalLayout(
            layout=made,
            block_ids=ids,
            sent=copied_to(
                tokens_within(own_starts[rows[plan.sent]], sharding.tokens_of(plan.sent), size), device
            ),
            returned=returned_to(plan, rows, own_starts, sharding, device),
            fetched_at=0,
            own_at=plan.num_fetched_tokens,
            num_tokens=int(starts[-1]),
            pieces=pieces_of(order, of_parts, device),
        )

    def keys(self, fetched: Tensor) -> tuple[Keys, int]:
        """The keys of the parts, and how many parts there are, at least 1."""
        own, blocks, size = self.own, self.sharding.blocks, self.sharding.block_size
        sequences = blocks.sequence[own].unique_consecutive()
        block = torch.cat([fetched, own])
        part = torch.searchsorted(sequences, blocks.sequence[block])
        is_short = (blocks.tokens[block] < size).long()
        is_own = (torch.arange(block.numel()) >= fetched.numel()).long()
        order = (((part * 2 + is_short) * 2 + is_own) * self.sharding.n_blocks + block).argsort()
        part = part[order]
        slot = torch.arange(block.numel()) - torch.searchsorted(part, part)
        return Keys(block[order], order, part, slot), max(1, sequences.numel())

    def lists(
        self, heads: range, grid: BlockGrid, keys: Keys, is_own: Tensor, n_parts: int
    ) -> tuple[BlockLayout, Tensor]:
        """The local layout, and the block id in the whole one of each of its blocks; the lists are made on the device."""
        shape, blocks, layout = self.shape, self.sharding.blocks, self.layout.to(self.shape.device)
        block, part = keys.block[is_own], keys.part[is_own]
        row = keys.slot[is_own]
        if not shape.is_causal:  # queries begin at position 0
            row = torch.arange(row.numel()) - torch.searchsorted(part, part)
        index, of_sequence = index_of(self.layout), blocks.of_sequence[block]
        lists = torch.arange(heads.start, heads.stop)[:, None] * self.layout.grid.n_rows + of_sequence
        numbers = index.numbers(lists, self.visible_end[block].expand_as(lists))
        slots = torch.full((self.sharding.n_blocks,), -1)
        slots[keys.block] = keys.slot
        total = int(numbers.sum())
        of_rows = torch.stack([index.indptr[lists].flatten(), numbers.flatten()])
        starts, numbers = copied_to(of_rows, shape.device)
        first = self.first_of_sequence[block]
        part, row, first, of_sequence = copied_to(torch.stack([part, row, first, of_sequence]), shape.device)
        place, which = places_of(starts, numbers, total)
        n_own = max(1, block.numel())
        head, which = which // n_own, which % n_own
        col = layout.row_lists.indices[place].long()
        distance = None
        if shape.dilation is not None:
            distance = (of_sequence[which] - col).abs() * grid.block_size
        slot = copied_to(slots, shape.device)[first[which] + col]
        entries = Blocks(part[which] * len(heads) + head, row[which], slot, place)
        return listed(layout, grid, n_parts, len(heads), entries, shape.device, shape.dilation, distance)


def pieces_of(order: Tensor, of_parts: Tensor, device: torch.device) -> Pieces:
    """The pieces of a rank.

    Args:
        order: the token of the buffer at each place.
        of_parts: queries and keys of each part, int64 (2, n_parts).
        device: of the call.
    """
    places = torch.arange(order.numel())
    offsets = offsets_of(of_parts[0], of_parts[1], device)
    if order.equal(places):
        return Pieces(offsets)
    back = torch.empty_like(order)
    back[order] = places
    return Pieces(offsets, *copied_to(torch.stack([order, back]), device))


def offsets_of(q_lens: Tensor, kv_lens: Tensor, device: torch.device) -> Offsets:
    """The offsets of sequences of these lengths, int64 (n_sequences,) on the CPU; at least one."""
    ends = torch.stack([q_lens, kv_lens]).cumsum(1)
    offsets = torch.cat([ends.new_zeros(2, 1), ends], 1).to(torch.int32)
    of_q, of_k = copied_to(offsets, device)
    return Offsets(of_q, of_k, int(q_lens.max()), int(kv_lens.max()))
