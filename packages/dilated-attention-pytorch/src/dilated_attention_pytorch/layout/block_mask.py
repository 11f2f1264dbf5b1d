"""To and from FlexAttention's BlockMask."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from .. import _torch_internals, values
from ..config import BLOCK_SIZES, check_block_size
from ..grid import BlockGrid
from .element_masks import Blocks, concatenated, has_pairs
from .from_mask import Listed, Masked, ask, groups_of, masked_lists
from .lists import BlockMasks
from .mask_mod import MaskMod

# What a BlockMask says of a block.
NONE, PARTIAL, FULL = 0, 1, 2


# ---- from a BlockMask


class Read(NamedTuple):
    """What a layout needs of a BlockMask."""

    grid: BlockGrid
    batch: int
    num_heads: int
    listed: Listed


class Sides(NamedTuple):
    """Tokens per block of a BlockMask."""

    q: int
    kv: int


def read_block_mask(
    block_mask: Any,
    allow_partial: bool,
    q_len: int | None,
    kv_len: int | None,
    causal: bool,
    block_size: int | None,
) -> Read:
    """The blocks of a BlockMask as a layout holds them; arguments as of `BlockLayout.from_block_mask`."""
    if not isinstance(block_mask, BlockMask):
        raise TypeError(
            f"block_mask must be a FlexAttention BlockMask, got {type(block_mask).__name__}; "
            "for a tensor of blocks use BlockLayout.from_dense, for one of tokens BlockLayout.from_mask"
        )
    if values.flag(allow_partial) is None:
        raise TypeError(f"allow_partial must be True or False, got {values.shown(allow_partial)}")
    sides, size = block_sizes(block_mask.BLOCK_SIZE, block_size)
    q_tokens, kv_tokens = lengths(block_mask, sides, q_len, kv_len)
    grid = BlockGrid(q_tokens, kv_tokens, size, causal)
    status = status_of(block_mask, bool(allow_partial), sides, q_tokens, kv_tokens)
    batch, num_heads = status.shape[:2]
    masked = one_of_equal_elements(masked_of_status(grid, status, sides, block_mask), batch)
    if masked.blocks.batch.numel() == 0 or not bool(masked.blocks.batch.any()):
        batch = 1
    return Read(grid, batch, num_heads, masked_lists(grid, batch, num_heads, masked))


def block_sizes(given: int | tuple[int, int], block_size: int | None) -> tuple[Sides, int]:
    """Tokens per block of a BlockMask, and the block_size asked for, or the largest that divides both sides."""
    sides = Sides(given, given) if isinstance(given, int) else Sides(*given)
    sizes = [size for size in BLOCK_SIZES if math.gcd(*sides) % size == 0]
    if not sizes:
        raise ValueError(
            f"block_mask must have blocks of whole square blocks of one of {BLOCK_SIZES} tokens, "
            f"got BLOCK_SIZE {given}; make it with BLOCK_SIZE=128"
        )
    if block_size is None:
        return sides, sizes[-1]
    size = check_block_size(block_size)
    if size not in sizes:
        raise ValueError(
            f"block_size must divide the BLOCK_SIZE {given} of block_mask: one of {sizes}, got {size}"
        )
    return sides, size


def lengths(block_mask: BlockMask, sides: Sides, q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    """The tokens that a BlockMask covers, or the first ones of them that were asked for."""
    q_most, kv_most = map(int, block_mask.seq_lengths)
    n_rows = block_mask.kv_num_blocks.shape[-1]
    if is_slice_of_rows(block_mask, sides):
        if q_most % sides.q and q_len is None:
            raise ValueError(
                f"block_mask has {n_rows} rows of {sides.q} queries, a slice of the rows of {q_most}: "
                "pass q_len, the number of its queries"
            )
        q_most = n_rows * sides.q
    found = []
    for name, given, most in (("q_len", q_len, q_most), ("kv_len", kv_len, kv_most)):
        tokens = most if given is None else values.integer(given)
        if tokens is None or not 1 <= tokens <= most:
            raise values.wrong(
                tokens, f"{name} must be 1 to the {most} tokens of block_mask, got {values.shown(given)}"
            )
        found.append(tokens)
    return found[0], found[1]


def status_of(
    block_mask: BlockMask, allow_partial: bool, sides: Sides, q_tokens: int, kv_tokens: int
) -> Tensor:
    """NONE, PARTIAL or FULL of every block, uint8 (batch, heads, n_rows, n_cols); FULL where both lists have a block."""
    n_rows, n_cols = -(-q_tokens // sides.q), -(-kv_tokens // sides.kv)
    partial = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices, n_rows, n_cols)
    has_none = block_mask.mask_mod is noop_mask
    status = partial.to(torch.uint8) * (FULL if allow_partial or has_none else PARTIAL)
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, n_rows, n_cols)
        status = status.masked_fill(full, FULL)
        n_partial = int((partial & ~full).sum()) if has_none and not allow_partial else 0
        if n_partial and _torch_internals.slices_forget_mask_mod():
            raise lost_mask_mod(n_partial, "a slice has none", is_slice_of_rows(block_mask, sides))
    return status


def lost_mask_mod(n_partial: int, why: object, is_of_rows: bool) -> ValueError:
    """`is_of_rows`: whether the BlockMask is a slice of the rows of another one."""
    if is_of_rows:
        instead = "make the layout of the whole BlockMask and pass q_offset to the attention"
        begin, shifted = "query 128", "mask_mod(b, h, q + 128, k)"
    else:
        instead = "make a BlockMask of its batch elements and heads with create_block_mask"
        begin, shifted = "head 2", "mask_mod(b, h + 2, q, k)"
    return ValueError(
        f"block_mask has {n_partial} partial blocks, and its mask_mod cannot be asked about them ({why}); instead of a "
        f"slice, {instead}, or set a mask_mod that counts batch, heads and queries from the slice (where that begins at "
        f"{begin}, block_mask.mask_mod = lambda b, h, q, k: {shifted}), or pass allow_partial=True to keep partial "
        "blocks whole"
    )


def is_slice_of_rows(block_mask: BlockMask, sides: Sides) -> bool:
    """Such a slice keeps the seq_lengths of the whole."""
    return block_mask.kv_num_blocks.shape[-1] * sides.q < int(block_mask.seq_lengths[0])


def listed_blocks(counts: Tensor, columns: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """Bool (batch, heads, n_rows, n_cols) of left-packed lists: counts (..., n_rows), columns (..., n_rows, width)."""
    if counts.dim() == 2 and counts.shape[0] > 1:
        raise ValueError(
            f"block_mask must have the axes (batch, heads, rows), got {tuple(counts.shape)}; index it with slices, "
            "as in block_mask[0:1, :]"
        )
    counts, columns = (x[(None,) * (3 - counts.dim())][:, :, :n_rows] for x in (counts, columns))
    taken = torch.arange(columns.shape[3], device=columns.device) < counts[..., None]
    taken &= columns < n_cols  # a mask that was adjusted to fewer keys keeps the columns of the others
    dense = torch.zeros(*counts.shape, n_cols + 1, dtype=torch.bool, device=columns.device)
    dense.scatter_(3, torch.where(taken, columns, n_cols).long(), True)
    return dense[..., :n_cols]


def masked_of_status(grid: BlockGrid, status: Tensor, sides: Sides, block_mask: BlockMask) -> Masked:
    """The blocks of a layout, and which of their pairs count: those of FULL blocks, and of PARTIAL ones what the mask_mod keeps.

    A block of a causal layout may lie in two rows of the BlockMask, whose rows begin at the first query.
    """
    device = status.device
    first = (torch.arange(grid.n_rows, device=device) + grid.first_row) * grid.block_size - grid.q_offset
    upper = status[:, :, first.clamp(min=0) // sides.q]
    lower = status[:, :, (first + grid.block_size - 1).clamp(max=grid.q_len - 1) // sides.q]
    col = torch.arange(0, grid.kv_len, grid.block_size, device=device) // sides.kv
    most, least = torch.maximum(upper, lower)[..., col], torch.minimum(upper, lower)[..., col]
    whole = Blocks(*(least == FULL).nonzero(as_tuple=True))
    whole = whole.taken(has_pairs(grid, whole.row, whole.col).nonzero().squeeze(1))
    partial = Blocks(*((most > NONE) & (least < FULL)).nonzero(as_tuple=True))
    partial = partial.taken(has_pairs(grid, partial.row, partial.col).nonzero().squeeze(1))
    asked = MaskMod(block_mask.mask_mod)

    def kept(blocks: Blocks, query: Tensor, key: Tensor) -> Tensor:
        of_pairs = status[
            blocks.batch[:, None], blocks.head[:, None], query // sides.q, key[:, :1] // sides.kv
        ][..., None]
        is_kept = asked(blocks.batch, blocks.head, query, key)
        return (of_pairs == FULL) | ((of_pairs == PARTIAL) & is_kept)

    try:
        found = ask(grid, groups_of(partial, grid), kept, device)
    except ValueError as error:
        raise lost_mask_mod(partial.number, error, is_slice_of_rows(block_mask, sides)) from error
    ids = torch.cat([torch.full_like(whole.row, -1), found.ids])
    return Masked(concatenated([whole, found.blocks]), ids, found.table)


def one_of_equal_elements(masked: Masked, batch: int) -> Masked:
    """The first batch element alone where all are the same."""
    blocks = masked.blocks
    counts = torch.bincount(blocks.batch, minlength=batch)
    if batch == 1 or bool((counts != counts[0]).any()) or not blocks.number:
        return masked
    places = torch.stack([*blocks[1:], masked.ids], 1)
    order = torch.arange(blocks.number, device=places.device)
    for key in (blocks.col, blocks.row, blocks.head, blocks.batch):
        order = order[key[order].argsort(stable=True)]
    elements = places[order].view(batch, -1, places.shape[1])
    if not bool((elements == elements[:1]).all()):
        return masked
    first = order[: elements.shape[1]]
    return Masked(blocks.taken(first), masked.ids[first], masked.table)


# ---- to a BlockMask


def group_size(num_heads: int, of_layout: int) -> int:
    """How many heads of a BlockMask every head of a layout serves."""
    heads = values.integer(num_heads)
    if heads is None or heads < 1 or heads % of_layout:
        raise values.wrong(
            heads,
            f"num_heads must be a multiple of layout.num_heads {of_layout}, got {values.shown(num_heads)}; "
            "pass the number of heads of q",
        )
    return heads // of_layout


def packed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (batch, heads, n_rows) and left-packed columns (batch, heads, n_rows, n_cols) of a dense block mask."""
    counts = dense.sum(-1, dtype=torch.int32)
    columns = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts, columns


def in_rows_of_queries(grid: BlockGrid, blocks: Tensor, of_two: Any) -> Tensor:
    """Blocks (..., n_rows, n_cols), whose rows begin at block positions, in rows that begin at the first query.

    Such a row lies in two rows of the layout where the first query sits in the middle of a block: `of_two` combines them.
    """
    if grid.q_offset % grid.block_size == 0:
        return blocks
    n_rows = -(-grid.q_len // grid.block_size)
    upper = blocks[..., :n_rows, :]
    lower = torch.cat([blocks[..., 1:, :], blocks[..., -1:, :]], -2)[..., :n_rows, :]
    return of_two(upper, lower)  # type: ignore[no-any-return]


def block_mask_of(grid: BlockGrid, entries: Tensor, masks: BlockMasks | None) -> BlockMask:
    """A BlockMask of a layout.

    Eager flex_attention reads the mask_mod alone, so that says the blocks as well.

    Args:
        grid: of the layout.
        entries: the block id of every pair of blocks, -1 where inactive; int64 (batch, heads, n_rows, n_cols).
        masks: the masks inside blocks.
    """
    active = entries >= 0
    is_whole = active
    if masks is not None:
        is_whole = active & (masks.ids[entries.clamp(min=0)] < 0)
    if grid.causal:
        rows = torch.arange(grid.n_rows, device=active.device)[:, None] + grid.first_row
        is_whole = is_whole & (torch.arange(grid.n_cols, device=active.device) < rows)
    full = in_rows_of_queries(grid, is_whole, torch.logical_and)
    partial = in_rows_of_queries(grid, active, torch.logical_or) & ~full
    return BlockMask.from_kv_blocks(
        *packed(partial),
        *packed(full),
        BLOCK_SIZE=grid.block_size,
        mask_mod=mask_mod_of_blocks(grid, active)
        if masks is None
        else mask_mod_of_masks(grid, entries, masks),
        seq_lengths=(grid.q_len, grid.kv_len),
    )


def strides(grid: BlockGrid, blocks: Tensor) -> tuple[Tensor, ...]:
    """Numbers of a mask_mod as tensors: a compiled flex_attention must serve layouts of many sizes.

    block_size, the position of query 0, the same from the first row on, and the strides of rows, heads and batch elements.
    """
    batch, heads, n_rows, n_cols = blocks.shape
    numbers = [
        grid.block_size,
        grid.q_offset,
        grid.q_offset - grid.first_row * grid.block_size,
        n_cols,
        n_rows * n_cols if heads > 1 else 0,
        heads * n_rows * n_cols if batch > 1 else 0,
    ]
    return torch.tensor(numbers, device=blocks.device).unbind()


def with_a_row_more(grid: BlockGrid, blocks: Tensor) -> Tensor:
    """For queries behind the last, which kernels may ask about where rows begin in the middle of a block."""
    return blocks if grid.q_offset % grid.block_size == 0 else torch.cat([blocks, blocks[..., -1:, :]], -2)


def mask_mod_of_blocks(grid: BlockGrid, active: Tensor) -> Any:
    """The mask_mod of whole blocks, bool (batch, heads, n_rows, n_cols)."""
    active = with_a_row_more(grid, active)
    block_size, offset, shift, row_stride, head_stride, batch_stride = strides(grid, active)
    table, causal = active.flatten(), grid.causal

    def mask_mod(batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        row, col = (q_idx + shift) // block_size, kv_idx // block_size
        is_active = table[batch * batch_stride + head * head_stride + row * row_stride + col]
        return is_active & (kv_idx <= q_idx + offset) if causal else is_active

    return mask_mod


def mask_mod_of_masks(grid: BlockGrid, entries: Tensor, masks: BlockMasks) -> Any:
    """The mask_mod of blocks with masks; `entries` as of `block_mask_of`."""
    # every block has the number of a mask: 0 of an inactive one, 1 of a whole one
    numbers = torch.where(entries < 0, 0, masks.ids[entries.clamp(min=0)] + 2).to(torch.int32)
    numbers = with_a_row_more(grid, numbers)
    block_size, offset, shift, row_stride, head_stride, batch_stride = strides(grid, numbers)
    of_none = masks.table.new_zeros(1, *masks.table.shape[1:])
    # one tensor of numbers and masks, by this name: sizes of two, or of an earlier name, meet a fault of inductor's C++, which
    # replaces text in symbols
    lookup = torch.cat([x.flatten() for x in (numbers, of_none, ~of_none, masks.table)])
    first_word, words = torch.tensor([numbers.numel(), of_none.shape[2]], device=lookup.device).unbind()
    causal = grid.causal

    def mask_mod(batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place, col = q_idx + shift, kv_idx // block_size
        row = place // block_size
        mask = lookup[batch * batch_stride + head * head_stride + row * row_stride + col]
        query, key = place - row * block_size, kv_idx - col * block_size
        word = lookup[first_word + (mask * block_size + query) * words + key // 32]
        kept = (word >> (key % 32)) & 1 == 1
        return kept & (kv_idx <= q_idx + offset) if causal else kept

    return mask_mod
