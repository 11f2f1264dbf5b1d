"""LocalLayout: the rows of one rank, with the columns of the buffer that holds its own blocks and those it fetched.

The buffer is ``[fetched | own]``: a rank's last query then sits at its last key, as in a causal call, each of its blocks on
its own diagonal, and whatever it fetched for a causal row lies before. A fetched block that is not whole must be the last of
the buffer: without causality it is ``[own | fetched]``, but on the last rank, whose own last block is the one that may not be
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import TokenDilation
from ..grid import BlockGrid
from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists, BlockMasks, build_csr
from .chunks import Chunked
from .copies import copied_to
from .plan import Blocks, ExchangePlan
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
        pieces: of packed sequences, see `Pieces`.
        sent_from: the first token of `sent` where these follow one another, so that they travel from where they are.
    """

    layout: BlockLayout
    block_ids: Tensor
    sent: Tensor
    returned: Returned
    fetched_at: int
    own_at: int
    num_tokens: int
    pieces: Pieces | None = None
    sent_from: int | None = None


class Offsets(NamedTuple):
    """Of packed sequences, as `block_sparse_attention_varlen` takes them."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True, eq=False)
class Pieces:
    """The rank's parts of packed sequences, each with the keys that it sees, one behind the other.

    Attributes:
        offsets: where each is.
        order: the token of the buffer at each place, int64 (num_tokens,); None if the buffer has this order.
        back: its inverse.
    """

    offsets: Offsets
    order: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Returned:
    """Which of the returned gradients belong to each of a rank's blocks.

    Attributes:
        indptr: int32 (n_own_blocks + 1,).
        starts: int32 (n_sent_blocks,), the first returned token of each, by block and then by the rank that returns it.
        tokens: int64 (n_returned_tokens,), the own token of each returned one.
        own_starts: int32 (n_own_blocks + 1,), the first token of each own block, and the end of the last.
        by_rank: how many come from each rank.
        block_size: tokens of a block, the most that one has.
        has_gaps: whether some of the returned are of no block: -1 among the tokens, and not among the starts.
    """

    indptr: Tensor
    starts: Tensor
    tokens: Tensor
    own_starts: Tensor
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
    size, n_blocks = sharding.block_size, sharding.n_blocks
    own = sharding.blocks_of(plan.rank)
    fetched_is_first = is_causal or plan.rank == sharding.world_size - 1
    n_own, n_fetched = int(sharding.tokens_of(own).sum()), plan.num_fetched_tokens
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
    distance = None if dilation is None else (mine.row - mine.col).abs() * size
    grid = BlockGrid(n_own, n_own + n_fetched, size, is_causal)
    made, ids = listed(
        layout, grid, layout.batch, num_heads, mine._replace(row=row, col=slot), device, dilation, distance
    )
    starts = torch.arange(own.numel() + 1).mul(size).clamp(max=n_own)
    sent = tokens_within(starts[own_rows[plan.sent]], sharding.tokens_of(plan.sent), size)
    return LocalLayout(
        layout=made,
        block_ids=ids,
        sent=sent.to(device),
        sent_from=first_of_run(sent),
        returned=returned_to(plan, own_rows, starts, sharding, device),
        fetched_at=fetched_at,
        own_at=own_at,
        num_tokens=n_own + n_fetched,
    )


def listed(
    layout: BlockLayout,
    grid: BlockGrid,
    batch: int,
    num_heads: int,
    blocks: Blocks,
    device: torch.device,
    dilation: TokenDilation | None,
    distance: Tensor | None,
) -> tuple[BlockLayout, Tensor]:
    """The layout of these blocks with the masks that they have in `layout`, and the block id of each there.

    Args:
        layout: where their places are.
        grid: the local rows and columns, which those of the blocks are.
        batch: of the local layout; `blocks.head` counts the heads over it.
        num_heads: of the local layout.
        blocks: in any order.
        device: of the call.
        dilation: token dilation of the call.
        distance: for it, of each block in the whole sequence, in tokens.
    """
    order = ((blocks.head * grid.n_rows + blocks.row) * grid.n_cols + blocks.col).argsort()
    head, row, col, place = blocks.taken(order)
    made = BlockLayout.from_blocks(grid, num_heads, head, row, col, batch=batch)
    ids = layout.row_lists.block_ids[place].long().to(device)
    masks = layout.block_masks
    if masks is not None:
        masks = BlockMasks(masks.ids.to(device)[ids].contiguous(), masks.table.to(device))
        made = BlockLayout(
            grid, num_heads, made.row_lists.to(device), made.col_lists.to(device), None, batch, masks
        )
    made = made.to(device)
    if dilation is not None and distance is not None:
        keep_classes(made, dilation, distance[order].to(device))
    return made, ids


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


def tokens_within(starts: Tensor, counts: Tensor, size: int) -> Tensor:
    """The tokens of blocks, one block after the other; where each begins, and how many of at most `size` it has."""
    tokens = starts[:, None] + torch.arange(size)
    return tokens[torch.arange(size) < counts[:, None]]


def first_of_run(tokens: Tensor) -> int | None:
    """The first of these tokens if each follows the one before, else None."""
    if not tokens.numel() or not bool((tokens.diff() == 1).all()):
        return None
    return int(tokens[0])


def returned_to(
    plan: ExchangePlan, own_rows: Tensor, own_starts: Tensor, sharding: Chunked, device: torch.device
) -> Returned:
    """Where the gradients of the blocks that a rank has sent come back: in the order in which it sent them.

    Args:
        plan: of the rank.
        own_rows: of each block of the sequence, which of the rank's own it is.
        own_starts: the first token of each own block, and the end of the last.
        sharding: of the sequence.
        device: of the call.
    """
    counts = sharding.tokens_of(plan.sent)
    starts, row = counts.cumsum(0) - counts, own_rows[plan.sent]
    order = row.argsort(stable=True)
    indptr = torch.searchsorted(row[order], torch.arange(own_starts.numel()))
    return Returned(
        indptr=copied_to(indptr.to(torch.int32), device),
        starts=copied_to(starts[order].to(torch.int32), device),
        tokens=copied_to(tokens_within(own_starts[row], counts, sharding.block_size), device),
        own_starts=copied_to(own_starts.to(torch.int32), device),
        by_rank=plan.sent_tokens,
        block_size=sharding.block_size,
    )
