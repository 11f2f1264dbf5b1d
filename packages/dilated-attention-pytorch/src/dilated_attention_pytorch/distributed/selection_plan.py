"""SelectionPlan: the exchange of blocks that were chosen from the content, made on the device without reading anything from it.

Each rank knows only what its own rows chose. It fills its slots (see slots.py) with the blocks of others that they name, and
asks the owners for them with one small all-to-all of int32. What follows is the exchange of any layout, with empty slots: an
owner sends some block for them, no list names it, and no gradient comes back from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch_internals import not_traced, without_any_modes
from ..caching import BoundedCache
from ..grid import BlockGrid
from ..layout.block_indices import BlockIndices, checked_indices
from ..layout.layout import BlockLayout
from ..validation.layouts import check_layout_heads
from ..validation.numbers import check_is_causal
from ..validation.tensors import check_qkv
from .agreement import agreed_by, breaks_if_left, check_agreement
from .checks import check_local_tokens, check_place
from .config import DistributedSparseConfig
from .local_layout import LocalLayout, Returned
from .sharding import SequenceSharding
from .slots import SlotTable
from .stages import Shape, Stage, split_heads

KNOWN = BoundedCache(256)  # digests of the facts of calls, see agreement.py


@dataclass(frozen=True, eq=False)
class SelectionPlan:
    """Which blocks a rank fetches and sends for blocks chosen from the content. Make one with `plan_of_indices`.

    Layers that attend to the same blocks share one.

    Attributes:
        sharding: which tokens each rank holds.
        config: the processes.
        is_causal: of the calls.
        shape: (batch, num_heads, num_kv_heads) of the calls.
        needed: int64 (groups of heads that exchange together, ranks), on the device: how many blocks of each other rank the
            rows of this one chose. A `capacity` of ``needed.max()`` drops nothing.
        dropped: int64 (), on the device: how many of the indices were not attended to for want of capacity.
        num_block_ids: the length of a block bias, ``indices.numel()``.
        stages: what is exchanged and computed, one group of heads after the other.
        layout: where there is one rank, and nothing to exchange.
    """

    sharding: SequenceSharding
    config: DistributedSparseConfig
    is_causal: bool
    shape: tuple[int, int, int]
    needed: Tensor
    dropped: Tensor
    num_block_ids: int
    stages: tuple[Stage, ...]
    layout: BlockLayout | None


@not_traced
def plan_of_indices(
    q: Tensor,
    k: Tensor,
    indices: Tensor,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    counts: Tensor | None = None,
    is_causal: bool = False,
) -> SelectionPlan:
    """The plan of `distributed_attention_from_plan`, for blocks that each rank has chosen for its own rows.

    Every rank calls it, with its own indices. On a GPU it never waits, and can be captured in a CUDA graph after a call of the
    same shapes.

    Of each other rank it fetches up to ``config.capacity`` blocks for each group of heads that exchange together, and the last
    block of a sequence besides, if that is short. Rows may choose more: then those that the fewest indices name are dropped,
    of equal ones the last, as if they had not been chosen. Messages always have the size of the capacity, so without one
    every rank receives all blocks that it could see.

    Args:
        q: of the calls; only its shape, device and dtype matter, as with k.
        k: (batch, local_len, num_kv_heads, head_dim).
        indices: int32 or int64 (batch or 1, num_heads or num_kv_heads or 1, n_rows, k), or with fewer leading axes, k may differ
            by rank: the blocks of the whole sequence that each block row of this rank attends to, in any order. Dropped are
            negative ones, blocks that the sequence does not have, the second of two equal ones in a row and, if causal, blocks
            after the row's own.
        sharding: which tokens each rank holds.
        config: the processes, and how they exchange blocks.
        counts: int32 or int64 (batch or 1, heads or 1, n_rows), or with fewer leading axes: only so many of the k count.
            Default: all.
        is_causal: of the calls.

    Raises:
        ValueError: an argument does not fit the others, or the ranks make different calls; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
    """
    check_place(sharding, config, SequenceSharding)
    check_is_causal(is_causal)
    check_qkv(q, k, k)
    check_local_tokens(sharding, q=q, k=k)
    table = SlotTable.of(sharding, config.capacity, is_causal, q.device)
    grid = BlockGrid(sharding.local_len, table.num_tokens, sharding.block_size, is_causal)
    given = checked_indices(indices, counts, grid)
    if indices.device != q.device:
        raise ValueError(f"indices must be on {q.device} as q, got {indices.device}")
    of_batch, of_heads = given.indices.shape[:2]
    check_layout_heads(q, k, of_heads)
    if of_batch not in (1, q.shape[0]):
        raise ValueError(f"indices must have batch 1 or {q.shape[0]}, got shape {tuple(indices.shape)}")
    shape = q.shape[0], q.shape[2], k.shape[2]
    facts = {
        "call": "plan_of_indices", "is_causal": is_causal, "batch": shape[0], "num_heads": shape[1], "num_kv_heads": shape[2],
        "head_dim": k.shape[3], "dtype": str(k.dtype), "device": q.device.type, "heads of indices": of_heads,
        "stages": config.stages, "capacity": config.capacity,
    }  # fmt: skip
    agree_once(config, sharding, facts)
    with without_any_modes(), breaks_if_left(config.group):
        made = make_stages(given, table, sharding, config, shape, 2 * k.shape[3] * k.element_size())
    return SelectionPlan(sharding, config, is_causal, shape, *made)


def agree_once(config: DistributedSparseConfig, sharding: SequenceSharding, facts: dict[str, Any]) -> None:
    """Raise on every rank unless all are here with these facts and this sharding; asked once for each."""
    if not config.agreement_timeout or config.world_size == 1:
        return
    signature = (sharding, *facts.values())
    if KNOWN.get(signature) in agreed_by(config.group):
        return
    facts = facts | {
        "seq_len": sharding.seq_len,
        "block_size": sharding.block_size,
        "chunks": sharding.chunks,
    }
    KNOWN.keep(signature, check_agreement(config, facts, config.agreement_timeout))


# ---- from indices to stages


class Made(NamedTuple):
    """The last fields of a SelectionPlan."""

    needed: Tensor
    dropped: Tensor
    num_block_ids: int
    stages: tuple[Stage, ...]
    layout: BlockLayout | None


def make_stages(
    given: BlockIndices,
    table: SlotTable,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    shape: tuple[int, int, int],
    bytes_per_head: int,
) -> Made:
    """What the ranks exchange and compute. `bytes_per_head`: of k and v of one token and kv head."""
    device, grid, number = given.indices.device, given.grid, given.indices.numel()
    if sharding.world_size == 1:
        zero = torch.zeros((), dtype=torch.int64, device=device)
        layout = BlockLayout.from_indices(
            given.indices, given.counts, q_len=grid.q_len, kv_len=grid.kv_len, block_size=grid.block_size, causal=grid.causal
        )  # fmt: skip
        return Made(zero.expand(1, 1), zero, number, (), layout)
    batch, num_heads, num_kv_heads = shape
    of_call = Shape(
        sharding, grid.causal, num_heads, num_kv_heads, None, device, config.stages, batch * num_kv_heads * bytes_per_head
    )  # fmt: skip
    of_heads = given.indices.shape[1]
    fetched = table.mean_slots * sharding.block_size * of_call.bytes_per_token
    group, per_list = num_heads // num_kv_heads, num_heads // of_heads
    parts = [
        (part, range(part.start * group, part.stop * group))
        for part in split_heads(of_call, of_heads > 1, fetched)
    ]
    lists_of = [range(heads.start // per_list, -(-heads.stop // per_list)) for _, heads in parts]
    groups = list(dict.fromkeys(lists_of))
    named = name_blocks(given, groups, table)
    places = fill_slots(named, table)
    received = ask(places.requests, table, config)
    sent, returned = serve(received, table, sharding)
    mapped = places.slots[named.keys]
    ids = torch.arange(number, device=device).view(given.indices.shape)
    locals_ = {
        lists: LocalLayout(
            layout=BlockLayout.from_indices(
                mapped[:, lists.start : lists.stop],
                q_len=grid.q_len,
                kv_len=grid.kv_len,
                block_size=grid.block_size,
                causal=grid.causal,
            ),
            block_ids=ids[:, lists.start : lists.stop].flatten(),
            sent=sent[i],
            returned=returned[i],
            fetched_at=table.fetched_at,
            own_at=table.own_at,
            num_tokens=table.num_tokens,
        )
        for i, lists in enumerate(groups)
    }
    stages = tuple(
        Stage(part, heads, table.transfers, locals_[lists])
        for (part, heads), lists in zip(parts, lists_of, strict=True)
    )
    dropped = ((named.keys < named.counts.numel()) & (mapped < 0)).sum()
    return Made(places.needed, dropped, number, stages, None)


class Named(NamedTuple):
    """The blocks that the rows of a rank name."""

    keys: Tensor
    """int64, as the indices: ``group * n_blocks + block``, ``groups * n_blocks`` for those that are dropped."""
    counts: Tensor
    """int32 (groups, n_blocks): how many indices name each."""


def name_blocks(given: BlockIndices, groups: list[range], table: SlotTable) -> Named:
    """What the indices name, for groups of their heads."""
    indices, counts, grid = given
    n_blocks, device = table.owner.numel(), indices.device
    group_of_head = torch.zeros(indices.shape[1], dtype=torch.int64, device=device)
    for i, heads in enumerate(groups):
        group_of_head[heads.start : heads.stop] = i
    cols = indices.long()
    is_kept = (cols >= 0) & (cols < n_blocks)
    if counts is not None:
        is_kept &= torch.arange(indices.shape[3], device=device) < counts[..., None]
    if grid.causal:
        is_kept &= cols <= table.rows[:, None]
    keys = torch.where(is_kept, group_of_head[:, None, None] * n_blocks + cols, len(groups) * n_blocks)
    found = torch.zeros(len(groups) * n_blocks + 1, dtype=torch.int32, device=device)
    flat = keys.flatten()
    if table.may_drop:
        found.index_add_(0, flat, found.new_ones(1).expand_as(flat))
    else:  # whether there is one is all that matters
        found.index_fill_(0, flat, 1)
    return Named(keys, found[:-1].view(len(groups), n_blocks))


class Places(NamedTuple):
    """Where the blocks of a rank's rows will be."""

    slots: Tensor
    """int32 (groups * n_blocks + 1,): the column of the buffer by key, -1 where a block is not there."""
    requests: Tensor
    """int32 (n_slots, groups): the block among those of its rank, -1 for an empty slot."""
    needed: Tensor
    """int64 (groups, ranks): blocks that are named of each other rank."""


def fill_slots(named: Named, table: SlotTable) -> Places:
    """Give the slots to the blocks that most indices name."""
    groups, n_blocks = named.counts.shape
    asked = named.counts * table.is_asked_for
    if table.may_drop:
        most = named.keys.numel() + 1
        order = (table.owner * most - asked).sort(dim=1, stable=True).indices
        blocks = order[:, table.taken]
    else:
        blocks = table.order[table.taken].expand(groups, -1)
    is_full = asked.gather(1, blocks) > 0
    if table.has_short:
        blocks = torch.cat([blocks, blocks.new_full((groups, 1), n_blocks - 1)], 1)
        is_full = torch.cat([is_full, named.counts[:, -1:] > 0], 1)
    first = table.fetched_at // table.block_size
    column = torch.arange(first, first + blocks.shape[1], dtype=torch.int32, device=blocks.device)
    slots = table.own_slots.repeat(groups, 1)
    slots.scatter_(1, blocks, torch.where(is_full, column, -1))
    requests = torch.where(is_full, table.row_at_owner[blocks], -1).to(torch.int32)
    needed = torch.zeros(groups, len(table.fetched_slots), dtype=torch.int64, device=blocks.device)
    needed.index_add_(1, table.owner, (asked > 0).long())
    return Places(
        torch.nn.functional.pad(slots.flatten(), (0, 1), value=-1), requests.t().contiguous(), needed
    )


def ask(requests: Tensor, table: SlotTable, config: DistributedSparseConfig) -> Tensor:
    """What the other ranks ask of this one, int32 (n_sent_slots, groups)."""
    received = requests.new_empty(sum(table.sent_slots), requests.shape[1])
    dist.all_to_all_single(
        received, requests, list(table.sent_slots), list(table.fetched_slots), group=config.group
    )
    return received


def serve(
    received: Tensor, table: SlotTable, sharding: SequenceSharding
) -> tuple[tuple[Tensor, ...], tuple[Returned, ...]]:
    """The own tokens that each group sends, and where their gradients come back."""
    size, n_own = sharding.block_size, table.rows.numel()
    asked = received.t().contiguous()  # (groups, n_sent_slots)
    rows = asked[:, table.sent_slot].long()  # (groups, n_sent_tokens)
    tokens = rows.clamp(min=0) * size + table.sent_offset
    of_blocks = torch.where(rows >= 0, tokens, -1)
    row, order = torch.where(asked >= 0, asked, n_own).sort(dim=1, stable=True)
    bounds = torch.arange(n_own + 1, dtype=torch.int32, device=asked.device).repeat(asked.shape[0], 1)
    indptr = torch.searchsorted(row, bounds, out_int32=True)
    starts = table.sent_starts[order]
    returned = (
        Returned(
            indptr=indptr[i],
            starts=starts[i],
            tokens=of_blocks[i],
            own_starts=table.own_starts,
            by_rank=table.transfers.sent_tokens,
            block_size=size,
            has_gaps=True,
        )
        for i in range(asked.shape[0])
    )
    return tokens.unbind(0), tuple(returned)
