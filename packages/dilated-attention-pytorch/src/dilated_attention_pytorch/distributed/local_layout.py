"""LocalLayout: the rows of one rank, with the columns of the buffer that holds its own blocks and those it fetched.

The buffer is ``[fetched | own]``: a rank's last query then sits at its last key, as in a causal call, each of its blocks on
its own diagonal, and whatever it fetched for a causal row lies before. A fetched block that is not whole must be the last of
the buffer: without causality it is ``[own | fetched]``, but on the last rank, whose own last block is the one that may not be
whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TokenDilation
from ..grid import BlockGrid
from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists, BlockMasks, build_csr
from .plan import Blocks, ExchangePlan, tokens_of
from .sharding import SequenceSharding


@dataclass(frozen=True, eq=False)
class LocalLayout:
    """What a rank computes with after an exchange, all of it on the device of the call.

    Attributes:
        layout: over the rank's queries and the keys of its buffer.
        block_ids: the block id in the whole layout of each of its blocks, int64 (num_block_ids,), for a block bias.
        sent: the rank's tokens that it sends, int64 (n,), in the order of the plan.
        returned: where the gradients of sent tokens come back, see `Returned`.
        fetched_at: the first token of the fetched blocks in the buffer.
        own_at: the first token of the rank's own blocks in the buffer.
        num_tokens: of the buffer.
    """

    layout: BlockLayout
    block_ids: Tensor
    sent: Tensor
    returned: Returned
    fetched_at: int
    own_at: int
    num_tokens: int


@dataclass(frozen=True, eq=False)
class Returned:
    """Which of the returned gradients belong to each of a rank's blocks.

    Attributes:
        indptr: int32 (n_own_blocks + 1,).
        starts: int32 (n_sent_blocks,), the first returned token of each, by block and then by the rank that returns it.
        tokens: int64 (n_returned_tokens,), the own token of each returned one.
        by_rank: how many come from each rank.
        block_size: tokens of a block.
        has_gaps: whether some of the returned are of no block: -1 among the tokens, and not among the starts.
    """

    indptr: Tensor
    starts: Tensor
    tokens: Tensor
    by_rank: tuple[int, ...]
    block_size: int
    has_gaps: bool = False


def make_local_layout(
    layout: BlockLayout,
    blocks: Blocks,
    num_heads: int,
    plan: ExchangePlan,
    sharding: SequenceSharding,
    is_causal: bool,
    dilation: TokenDilation | None,
    device: torch.device,
) -> LocalLayout:
    """The local layout of the rank of a plan.

    Args:
        layout: the whole one.
        blocks: its active blocks, of `num_heads` heads for each batch element.
        num_heads: of the local layout.
        plan: of these blocks.
        sharding: of the sequence.
        is_causal: as of the call.
        dilation: token dilation of the call, by distances in the whole sequence.
        device: of the call.
    """
    size, n_blocks = sharding.block_size, -(-sharding.seq_len // sharding.block_size)
    own = sharding.blocks_of(plan.rank)
    fetched_is_first = is_causal or plan.rank == sharding.world_size - 1
    n_own, n_fetched = int(tokens_of(own, sharding).sum()), plan.num_fetched_tokens
    own_at, fetched_at = (n_fetched, 0) if fetched_is_first else (0, n_own)
    own_slot, fetched_slot = own_at // size, -(-fetched_at // size)
    slots = torch.full((n_blocks,), -1, dtype=torch.int64)
    slots[own] = own_slot + torch.arange(own.numel())
    slots[plan.fetched] = fetched_slot + torch.arange(plan.fetched.numel())
    own_rows = torch.full((n_blocks,), -1, dtype=torch.int64)
    own_rows[own] = torch.arange(own.numel())

    rows_of = own_rows.to(blocks.row.device)
    mine = blocks.taken(rows_of[blocks.row] >= 0)
    row, slot = rows_of[mine.row], slots.to(blocks.row.device)[mine.col]
    grid = BlockGrid(n_own, n_own + n_fetched, size, is_causal)
    made, order = listed(grid, layout, num_heads, mine.head, row, slot)
    ids = layout.row_lists.block_ids[mine.place[order]].long().to(device)
    if layout.block_masks is not None:
        masks = BlockMasks(
            layout.block_masks.ids.to(device)[ids].contiguous(), layout.block_masks.table.to(device)
        )
        made = BlockLayout(
            grid, num_heads, made.row_lists.to(device), made.col_lists.to(device), None, layout.batch, masks
        )
    made = made.to(device)
    if dilation is not None:
        distance = ((mine.row - mine.col).abs() * size)[order].to(device)
        keep_classes(made, dilation, distance)
    return LocalLayout(
        layout=made,
        block_ids=ids,
        sent=tokens_within(own_rows[plan.sent], tokens_of(plan.sent, sharding), size).to(device),
        returned=returned_to(plan, own_rows, own.numel(), sharding, device),
        fetched_at=fetched_at,
        own_at=own_at,
        num_tokens=n_own + n_fetched,
    )


def listed(
    grid: BlockGrid, layout: BlockLayout, num_heads: int, head: Tensor, row: Tensor, slot: Tensor
) -> tuple[BlockLayout, Tensor]:
    """The layout of these blocks, and the order of its row lists."""
    order = ((head * grid.n_rows + row) * grid.n_cols + slot).argsort()
    made = BlockLayout._of_blocks(grid, num_heads, head[order], row[order], slot[order], batch=layout.batch)
    return made, order


def keep_classes(layout: BlockLayout, dilation: TokenDilation, distance: Tensor) -> None:
    """Split the lists of a layout by distances that are not those of its rows and columns; `distance` is in tokens."""
    grid, n_classes = layout.grid, len(dilation.segment_lengths)
    head, row, col = layout.coo()
    classes = torch.zeros_like(distance)
    for length in dilation.segment_lengths[:-1]:
        classes += distance >= length
    n_lists_rows, n_lists_cols = (
        layout.batch * layout.num_heads * n * n_classes for n in (grid.n_rows, grid.n_cols)
    )
    row_key = ((head * grid.n_rows + row) * n_classes + classes) * grid.n_cols + col
    col_key = ((head * grid.n_cols + col) * n_classes + classes) * grid.n_rows + row
    ids = layout.row_lists.block_ids
    lists: tuple[BlockLists, BlockLists] = (
        build_csr(row_key, n_lists_rows, grid.n_cols, col, ids),
        build_csr(col_key, n_lists_cols, grid.n_rows, row, ids),
    )
    layout.keep_lists(dilation, lists)


def tokens_within(blocks: Tensor, counts: Tensor, size: int) -> Tensor:
    """The tokens of the blocks of a rank, one block after the other; `counts`: how many each has."""
    tokens = blocks[:, None] * size + torch.arange(size)
    return tokens[torch.arange(size) < counts[:, None]]


def returned_to(
    plan: ExchangePlan, own_rows: Tensor, n_own: int, sharding: SequenceSharding, device: torch.device
) -> Returned:
    """Where the gradients of the blocks that a rank has sent come back: in the order in which it sent them."""
    counts = tokens_of(plan.sent, sharding)
    starts, row = counts.cumsum(0) - counts, own_rows[plan.sent]
    order = row.argsort(stable=True)
    indptr = torch.searchsorted(row[order], torch.arange(n_own + 1))
    return Returned(
        indptr.to(device, torch.int32),
        starts[order].to(device, torch.int32),
        tokens_within(row, counts, sharding.block_size).to(device),
        plan.sent_tokens,
        sharding.block_size,
    )
