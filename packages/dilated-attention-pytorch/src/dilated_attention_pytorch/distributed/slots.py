"""SlotTable: room for blocks that travel between ranks before anyone knows which ones do.

From each other rank a rank has as many slots as blocks that it may fetch, so the sizes of all messages are known without
reading anything from a device. Only the last block of a sequence may be short: it has a slot of its own, the last of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch_internals import without_any_modes
from ..caching import BoundedCache, make_once
from .plan import Transfers
from .sharding import SequenceSharding

TABLES = BoundedCache(16)


@dataclass(frozen=True, eq=False)
class SlotTable:
    """The slots of one rank. All tensors are on the device of the calls.

    Attributes:
        transfers: the tokens of all slots.
        block_size: tokens of a block.
        mean_slots: how many a rank has on average, alike on every rank.
        fetched_slots: how many there are for the blocks of each rank.
        sent_slots: how many each rank has for the blocks of this one.
        may_drop: whether a rank has more blocks than this one has slots for.
        has_short: whether the last slot is that of the short last block.
        fetched_at: the first token of the slots in the buffer, see local_layout.py.
        own_at: the first token of the rank's own blocks there.
        num_tokens: of the buffer.
        owner: int64 (n_blocks,), the rank of each block.
        row_at_owner: int32 (n_blocks,), the place of each block among those of its rank.
        rows: int64 (n_rows,), the own blocks.
        order: int64 (n_blocks,), all blocks by rank, ascending.
        taken: int64 (n_slots,), a place in such an order for each slot but that of the short block.
        is_asked_for: bool (n_blocks,), the blocks that compete for slots: no own one, nor a short one.
        own_slots: int32 (n_blocks,), the column of the buffer of each own block, -1 for others.
        own_starts: int32 (n_rows + 1,), the first token of each own block among the rank's own, and the end of the last.
        sent_slot: int64 (n_sent_tokens,), the slot of each token that is sent.
        sent_offset: int64 (n_sent_tokens,), its place there.
        sent_starts: int32 (n_sent_slots,), the first token of each slot.
    """

    transfers: Transfers
    block_size: int
    mean_slots: float
    fetched_slots: tuple[int, ...]
    sent_slots: tuple[int, ...]
    may_drop: bool
    has_short: bool
    fetched_at: int
    own_at: int
    num_tokens: int
    owner: Tensor
    row_at_owner: Tensor
    rows: Tensor
    order: Tensor
    taken: Tensor
    is_asked_for: Tensor
    own_slots: Tensor
    own_starts: Tensor
    sent_slot: Tensor
    sent_offset: Tensor
    sent_starts: Tensor

    @classmethod
    def of(
        cls, sharding: SequenceSharding, capacity: int | None, is_causal: bool, device: torch.device
    ) -> SlotTable:
        """The table of the rank of a sharding, made once. `capacity`: blocks from each other rank, None: all."""
        key = (sharding, capacity, is_causal, device)
        return make_once(TABLES, key, device, lambda: make_table(sharding, capacity, is_causal, device))


def visible_blocks(sharding: SequenceSharding, is_causal: bool) -> Tensor:
    """How many whole blocks of each rank another may need, int64 (ranks that need, ranks that have)."""
    world_size, is_short = sharding.world_size, sharding.seq_len % sharding.block_size != 0
    of_ranks = [sharding.blocks_of(rank) for rank in range(world_size)]
    last = torch.stack([blocks[-1] for blocks in of_ranks])
    if is_short:
        of_ranks[-1] = of_ranks[-1][:-1]
    columns = [
        torch.searchsorted(blocks, last, right=True) if is_causal else torch.full_like(last, blocks.numel())
        for blocks in of_ranks
    ]
    return torch.stack(columns, 1).fill_diagonal_(0)


def needs_short(sharding: SequenceSharding, is_causal: bool, rank: int) -> bool:
    """Whether the last block is short, and may be needed by this rank: if causal it is by its owner alone."""
    return not is_causal and sharding.seq_len % sharding.block_size != 0 and rank != sharding.world_size - 1


def slots_of_all(sharding: SequenceSharding, capacity: int | None, is_causal: bool) -> Tensor:
    """Slots for whole blocks, int64 (ranks that need, ranks that have); alike on every rank."""
    visible = visible_blocks(sharding, is_causal)
    return visible if capacity is None else visible.clamp(max=capacity)


@without_any_modes()
def make_table(
    sharding: SequenceSharding, capacity: int | None, is_causal: bool, device: torch.device
) -> SlotTable:
    rank, world_size, size = sharding.rank, sharding.world_size, sharding.block_size
    last = world_size - 1
    visible = visible_blocks(sharding, is_causal)
    whole = slots_of_all(sharding, capacity, is_causal)
    short = sharding.seq_len % size
    has_short = needs_short(sharding, is_causal, rank)
    sends_short = [rank == last and needs_short(sharding, is_causal, other) for other in range(world_size)]
    fetched, sent = whole[rank].tolist(), whole[:, rank].tolist()
    fetched_tokens = [n * size + short * (has_short and i == last) for i, n in enumerate(fetched)]
    sent_tokens = [n * size + short * s for n, s in zip(sent, sends_short, strict=True)]

    own, owner = sharding.blocks_of(rank), sharding.rank_of_block()
    n_own, n_fetched = int(sharding.tokens_of(own).sum()), sum(fetched_tokens)
    own_at, fetched_at = (n_fetched, 0) if is_causal or rank == last else (0, n_own)
    order = owner.argsort(stable=True)
    first_of_rank = torch.searchsorted(owner[order], torch.arange(world_size))
    row_at_owner = torch.empty_like(owner)
    row_at_owner[order] = torch.arange(owner.numel()) - first_of_rank[owner[order]]
    is_asked_for = owner != rank
    is_asked_for[-1] &= short == 0
    own_slots = torch.full_like(owner, -1)
    own_slots[own] = own_at // size + torch.arange(own.numel())

    lengths = [length for n, s in zip(sent, sends_short, strict=True) for length in [size] * n + [short] * s]
    of_slots = torch.tensor(lengths, dtype=torch.int64)
    starts = of_slots.cumsum(0) - of_slots
    sent_slot = torch.arange(of_slots.numel()).repeat_interleave(of_slots)
    return SlotTable(
        transfers=Transfers(rank, tuple(fetched_tokens), tuple(sent_tokens), False),
        block_size=size,
        mean_slots=int(whole.sum()) / world_size,
        fetched_slots=tuple(n + (has_short and i == last) for i, n in enumerate(fetched)),
        sent_slots=tuple(n + s for n, s in zip(sent, sends_short, strict=True)),
        may_drop=bool((whole[rank] < visible[rank]).any()),
        has_short=has_short,
        fetched_at=fetched_at,
        own_at=own_at,
        num_tokens=n_own + n_fetched,
        owner=owner.to(device),
        row_at_owner=row_at_owner.to(device, torch.int32),
        rows=own.to(device),
        order=order.to(device),
        taken=torch.cat([first + torch.arange(n) for first, n in zip(first_of_rank, fetched, strict=True)]).to(device),
        is_asked_for=is_asked_for.to(device),
        own_slots=own_slots.to(device, torch.int32),
        own_starts=torch.arange(own.numel() + 1).mul(size).clamp(max=n_own).to(device, torch.int32),
        sent_slot=sent_slot.to(device),
        sent_offset=(torch.arange(sent_slot.numel()) - starts[sent_slot]).to(device),
        sent_starts=starts.to(device, torch.int32),
    )  # fmt: skip
