"""Layouts from masks of pairs of tokens: a mask_mod or a bool tensor, asked block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import values
from ..grid import BlockGrid
from .element_masks import (
    Active,
    Blocks,
    MaskTable,
    concatenated,
    has_pairs,
    kept_in,
    kinds_of,
    numbered_as_they_occur,
)
from .lists import BlockLists, BlockMasks, build_csr, csr_of_sorted, unpacked_masks
from .mask_mod import MaskMod

# Pairs of tokens that a mask is asked about at a time: bounds the working memory.
PAIRS_PER_GROUP = {"cpu": 2**20}
PAIRS_PER_GROUP_ON_GPU = 2**24

Mask = Callable[[Blocks, Tensor, Tensor], Tensor]
"""Bool (n, block_size, block_size) of n blocks, the queries and the keys of each, int64 (n, block_size)."""


class Listed(NamedTuple):
    """What a layout holds of the blocks of a mask."""

    row_lists: BlockLists
    col_lists: BlockLists
    block_masks: BlockMasks | None


def pairs_per_group(device: torch.device) -> int:
    return PAIRS_PER_GROUP.get(device.type, PAIRS_PER_GROUP_ON_GPU)


# ---- candidates


def all_blocks(grid: BlockGrid, batch: int, num_heads: int, device: torch.device) -> Iterator[Blocks]:
    """Every block with a pair that exists, in groups and in the order of a layout."""
    n_blocks = batch * num_heads * grid.n_rows * grid.n_cols
    size = max(1, pairs_per_group(device) // grid.block_size**2)
    for first in range(0, n_blocks, size):
        place = torch.arange(first, min(first + size, n_blocks), device=device)
        row, col = place // grid.n_cols % grid.n_rows, place % grid.n_cols
        list_of_heads = place // (grid.n_cols * grid.n_rows)
        blocks = Blocks(list_of_heads // num_heads, list_of_heads % num_heads, row, col)
        yield blocks.taken(has_pairs(grid, row, col).nonzero().squeeze(1)) if grid.causal else blocks


def groups_of(blocks: Blocks, grid: BlockGrid) -> Iterator[Blocks]:
    """The blocks in groups."""
    size = max(1, pairs_per_group(blocks.row.device) // grid.block_size**2)
    for group in zip(*(x.split(size) for x in blocks), strict=True):
        yield Blocks(*group)


# ---- asking


def tokens_of(grid: BlockGrid, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """The queries and the keys of blocks, int64 (n, block_size) each; the nearest that exists for one that does not."""
    place = torch.arange(grid.block_size, device=blocks.row.device)
    query = (blocks.row[:, None] + grid.first_row) * grid.block_size + place - grid.q_offset
    key = blocks.col[:, None] * grid.block_size + place
    return query.clamp(0, grid.q_len - 1), key.clamp(max=grid.kv_len - 1)


class Masked(NamedTuple):
    """The blocks of a mask in which some pair is kept, in the order of a layout."""

    blocks: Blocks
    ids: Tensor
    """int64 (n,): the mask of each block in `table`, -1 where all pairs that exist are kept."""
    table: Tensor


def ask(grid: BlockGrid, groups: Iterator[Blocks], mask: Mask, device: torch.device) -> Masked:
    """The blocks of `groups` in which `mask` keeps a pair, and which pairs it keeps."""
    table, parts, all_masked = MaskTable(grid, device), [], []
    none = torch.empty(0, dtype=torch.int64, device=device)
    parts.append(Blocks(none, none, none, none))
    all_masked.append(none.bool())
    for blocks in groups:
        if blocks.number == 0:
            continue
        kinds = kinds_of(grid, blocks.row, blocks.col)
        kept = kept_in(mask(blocks, *tokens_of(grid, blocks)), kinds, table.exists)
        is_masked = torch.zeros_like(kept.some)
        is_masked[kept.masked] = True
        if kept.masked.numel():
            table.add(kept.bits, kinds[kept.masked])
        some = kept.some.nonzero().squeeze(1)
        parts.append(blocks.taken(some))
        all_masked.append(is_masked[some])
    masked = torch.cat(all_masked)
    numbers, words = table.finished()
    ids = torch.full(masked.shape, -1, dtype=torch.int64, device=device)
    ids[masked] = numbers
    return Masked(concatenated(parts), ids, words)


def masked_lists(grid: BlockGrid, batch: int, num_heads: int, masked: Masked) -> Listed:
    """The lists of blocks in any order, none twice, and their masks."""
    blocks, n_rows, n_cols = masked.blocks, grid.n_rows, grid.n_cols
    if blocks.number >= 2**31:
        raise ValueError(
            f"a layout holds at most 2**31 - 1 active blocks, got {blocks.number}; use a larger block_size"
        )
    head = blocks.batch * num_heads + blocks.head
    row_key = (head * n_rows + blocks.row) * n_cols + blocks.col
    order = row_key.argsort()
    row_key, head, row, col = row_key[order], head[order], blocks.row[order], blocks.col[order]
    ids = torch.arange(order.numel(), device=order.device)
    col_key = (head * n_cols + col) * n_rows + row
    return Listed(
        csr_of_sorted(row_key, batch * num_heads * n_rows, n_cols, col, ids),
        build_csr(col_key, batch * num_heads * n_cols, n_rows, row, ids),
        numbered_as_they_occur(masked.ids[order], masked.table),
    )


# ---- masks


def of_mask_mod(mask_mod: Any) -> Mask:
    """A mask_mod as a mask."""
    asked = MaskMod(mask_mod)
    return lambda blocks, query, key: asked(blocks.batch, blocks.head, query, key)


def of_tensor(mask: Tensor) -> Mask:
    """A bool tensor (batch, heads, q_len, kv_len) as a mask."""

    def read(blocks: Blocks, query: Tensor, key: Tensor) -> Tensor:
        batch, head = blocks.batch[:, None, None], blocks.head[:, None, None]
        return mask[batch, head, query[:, :, None], key[:, None]]

    return read


def checked_mask(mask: Any) -> Tensor:
    """The mask as (batch or 1, heads or 1, q_len, kv_len); raise unless it is a bool tensor of two to four dimensions."""
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"mask must be a bool tensor, got {type(mask).__name__}; use torch.as_tensor(mask, dtype=torch.bool)"
        )
    shape = "(q_len, kv_len), (heads, q_len, kv_len) or (batch, heads, q_len, kv_len)"
    if mask.is_nested or mask.layout != torch.strided or mask.is_meta:
        kind = "a nested tensor" if mask.is_nested else f"{mask.layout} on {mask.device}"
        raise ValueError(f"mask must be a dense tensor with values, bool {shape}, got {kind}")
    if mask.is_floating_point():
        raise TypeError(
            f"mask must be bool, True where a key is seen, got {mask.dtype}; for a mask of 0 and -inf use mask == 0, for one that "
            "is added to the scores attn_bias"
        )
    if mask.dtype != torch.bool or mask.dim() not in (2, 3, 4) or mask.numel() == 0:
        raise ValueError(f"mask must be bool {shape}, each at least 1, got {mask.dtype} {tuple(mask.shape)}")
    whole = mask[(None,) * (4 - mask.dim())]
    for axis in (0, 1):  # of an expanded mask one is enough
        if whole.stride(axis) == 0:
            whole = whole.narrow(axis, 0, 1)
    return whole


# ---- within another layout


class Within(NamedTuple):
    """A layout that a mask is within."""

    grid: BlockGrid
    batch: int
    num_heads: int
    active: Active
    block_masks: BlockMasks | None


def check_same_grid(found: BlockGrid, wanted: BlockGrid) -> None:
    """Raise ValueError unless the grid of the layout that a mask is within is that of the mask."""
    if found != wanted:
        raise ValueError(
            f"within must be for q_len {wanted.q_len}, kv_len {wanted.kv_len}, block_size {wanted.block_size} and "
            f"causal={wanted.causal}, got a layout for {found.q_len}, {found.kv_len}, {found.block_size} and "
            f"causal={found.causal}"
        )


def check_count(name: str, given: Any, least: int) -> int:
    """The number of batch elements or heads of a mask; None is `least`, that of the layout that the mask is within, or 1."""
    if given is None:
        return least
    found = values.tokens(given)
    if found is None:
        raise values.wrong(
            values.integer(given),
            f"{name} must be a positive number, or None where the mask is the same for all, got {values.shown(given)}",
        )
    if least not in (1, found):
        raise ValueError(f"{name} must be the {least} of within, or None, got {found}")
    return found


def blocks_within(inside: Within, batch: int, num_heads: int) -> Blocks:
    """The blocks of a layout for so many batch elements and heads, of which it has as many, or one."""
    blocks = inside.active.blocks
    list_of = blocks.batch * inside.num_heads + blocks.head
    ends = torch.bincount(list_of, minlength=inside.batch * inside.num_heads).cumsum(0).tolist()
    parts = []
    for element, head in itertools.product(range(batch), range(num_heads)):
        i_list = element % inside.batch * inside.num_heads + head % inside.num_heads
        _, _, row, col = blocks.taken(slice(ends[i_list - 1] if i_list else 0, ends[i_list]))
        parts.append(Blocks(torch.full_like(row, element), torch.full_like(row, head), row, col))
    return concatenated(parts)


def mask_within(mask: Mask, inside: Within) -> Mask:
    """`mask` together with the masks inside the blocks of a layout, for `blocks_within`."""
    masks, grid = inside.block_masks, inside.grid
    if masks is None:
        return mask

    def keys_of(of: Blocks) -> Tensor:
        list_of = of.batch % inside.batch * inside.num_heads + of.head % inside.num_heads
        return (list_of * grid.n_rows + of.row) * grid.n_cols + of.col

    keys = keys_of(inside.active.blocks)  # ascending

    def both(of: Blocks, query: Tensor, key: Tensor) -> Tensor:
        ids = masks.ids[inside.active.block_ids[torch.searchsorted(keys, keys_of(of))]].long()
        masked = (ids >= 0).nonzero().squeeze(1)
        kept = mask(of, query, key).clone()
        kept[masked] &= unpacked_masks(masks.table[ids[masked]])
        return kept

    return both
