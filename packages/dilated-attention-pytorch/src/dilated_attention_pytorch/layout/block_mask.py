"""To and from FlexAttention's BlockMask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from .. import values
from ..config import BLOCK_SIZES
from ..grid import BlockGrid

# Token pairs for which a mask_mod is evaluated at a time: bounds the working memory.
PAIRS_PER_GROUP = 2**22


# ---- from a BlockMask


def dense_of_block_mask(
    block_mask: Any, allow_partial: bool, q_len: int | None, kv_len: int | None
) -> tuple[Tensor, int, int, int]:
    """Bool (heads, n_rows, n_cols) of square blocks, q_len, kv_len and block_size of what a layout can hold."""
    if not isinstance(block_mask, BlockMask):
        raise TypeError(
            f"block_mask must be a FlexAttention BlockMask, got {type(block_mask).__name__}; "
            "for a tensor of blocks use BlockLayout.from_dense"
        )
    if values.flag(allow_partial) is None:
        raise TypeError(f"allow_partial must be True or False, got {values.shown(allow_partial)}")
    q_block, kv_block, size = block_sizes(block_mask.BLOCK_SIZE)
    q_tokens, kv_tokens = lengths(block_mask, q_block, q_len, kv_len)
    shape = (-(-q_tokens // q_block), -(-kv_tokens // kv_block))
    partial = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices, *shape)
    active = partial & False
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        active = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, *shape)
    if allow_partial or block_mask.mask_mod is noop_mask:
        active = active | partial
    elif bool((partial & ~active).any()):
        active = active | whole_blocks(
            block_mask.mask_mod, partial & ~active, (q_tokens, kv_tokens), (q_block, kv_block)
        )
    if not bool((active == active[:1]).all()):
        raise ValueError(
            f"block_mask must be the same for every batch element, got {active.shape[0]} that differ; "
            "make one layout per batch element, of block_mask[b : b + 1]"
        )
    rows = torch.arange(0, q_tokens, size, device=active.device) // q_block
    cols = torch.arange(0, kv_tokens, size, device=active.device) // kv_block
    return active[0][:, rows][:, :, cols], q_tokens, kv_tokens, size


def block_sizes(sides: int | tuple[int, int]) -> tuple[int, int, int]:
    """Tokens per block of queries and of keys, and the largest block_size that divides both."""
    q_block, kv_block = (sides, sides) if isinstance(sides, int) else sides
    sizes = [size for size in BLOCK_SIZES if math.gcd(q_block, kv_block) % size == 0]
    if not sizes:
        raise ValueError(
            f"block_mask must have blocks of whole square blocks of one of {BLOCK_SIZES} tokens, "
            f"got BLOCK_SIZE {sides}; make it with BLOCK_SIZE=128"
        )
    return q_block, kv_block, sizes[-1]


def lengths(block_mask: BlockMask, q_block: int, q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    """The tokens that a BlockMask covers, or the first ones of them that were asked for."""
    q_most, kv_most = map(int, block_mask.seq_lengths)
    n_rows = block_mask.kv_num_blocks.shape[-1]
    if n_rows * q_block < q_most:  # a slice of rows keeps the seq_lengths of the whole
        if q_most % q_block and q_len is None:
            raise ValueError(
                f"block_mask has {n_rows} rows of {q_block} queries, a slice of the rows of {q_most}: "
                "pass q_len, the number of its queries"
            )
        q_most = n_rows * q_block
    found = []
    for name, given, most in (("q_len", q_len, q_most), ("kv_len", kv_len, kv_most)):
        tokens = most if given is None else values.integer(given)
        if tokens is None or not 1 <= tokens <= most:
            raise ValueError(
                f"{name} must be 1 to the {most} tokens of block_mask, got {values.shown(given)}"
            )
        found.append(tokens)
    return found[0], found[1]


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


def whole_blocks(mask_mod: Any, partial: Tensor, tokens: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Of the partial blocks (batch, heads, n_rows, n_cols), those of which the mask_mod keeps every token pair.

    A block at a ragged end is listed as partial even if the mask_mod keeps all of it.
    """
    where = partial.nonzero()
    q_side, kv_side = (min(side, length) for side, length in zip(sides, tokens))
    each_key = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    each_pair = torch.vmap(torch.vmap(each_key, in_dims=(None, None, 0, None)))
    whole, n_mixed = partial & False, 0
    for batch, head, row, col in (
        group.unbind(1) for group in where.split(max(1, PAIRS_PER_GROUP // (q_side * kv_side)))
    ):
        q = row[:, None] * sides[0] + torch.arange(q_side, device=where.device)
        kv = col[:, None] * sides[1] + torch.arange(kv_side, device=where.device)
        inside = (q < tokens[0])[:, :, None] & (kv < tokens[1])[:, None, :]
        try:  # a mask_mod that reads a table, of documents for one, has no entries past the end
            kept = each_pair(batch, head, q.clamp(max=tokens[0] - 1), kv.clamp(max=tokens[1] - 1))
        except Exception as error:
            raise refuse_partial(where.shape[0], str(error).partition("\n")[0]) from error
        every = (kept | ~inside).all(2).all(1)
        n_mixed += int(((kept & inside).any(2).any(1) & ~every).sum())
        whole[batch[every], head[every], row[every], col[every]] = True
    if n_mixed:
        raise refuse_partial(n_mixed)
    return whole


def refuse_partial(count: int, why: str = "") -> ValueError:
    return ValueError(
        f"block_mask has {count} partial blocks, whose mask_mod a BlockLayout cannot hold{why and f' ({why})'}; pass "
        "allow_partial=True to keep them whole, and is_causal=True to the attention if the mask was causal"
    )


# ---- to a BlockMask


def packed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (1, heads, n_rows) and left-packed columns (1, heads, n_rows, n_cols) of a dense block mask."""
    counts = dense.sum(-1, dtype=torch.int32)
    columns = dense.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None], columns[None]


def block_mask_of(grid: BlockGrid, dense: Tensor) -> BlockMask:
    """A BlockMask of the blocks `dense`, bool (heads, n_rows, n_cols); the diagonal is partial when causal.

    Eager flex_attention reads the mask_mod alone, so that says the blocks as well.
    """
    if grid.q_offset % grid.block_size:
        raise ValueError(
            f"q_len {grid.q_len} and kv_len {grid.kv_len} of a causal layout must differ by whole blocks of "
            f"{grid.block_size} for a BlockMask, whose rows start at the first query"
        )
    partial = torch.zeros_like(dense)
    if grid.causal:
        rows = torch.arange(grid.n_rows, device=dense.device)[:, None] + grid.first_row
        partial = dense & (torch.arange(grid.n_cols, device=dense.device) >= rows)
    # one axis, and numbers as tensors: a compiled flex_attention must serve layouts of many sizes
    table, causal = dense.flatten(), grid.causal
    numbers = [grid.block_size, grid.q_offset, grid.n_cols, dense[0].numel() if dense.shape[0] > 1 else 0]
    block_size, offset, row_stride, head_stride = torch.tensor(numbers, device=dense.device).unbind()

    def mask_mod(batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        active = table[head * head_stride + q_idx // block_size * row_stride + kv_idx // block_size]
        return active & (kv_idx <= q_idx + offset) if causal else active

    return BlockMask.from_kv_blocks(
        *packed(partial),
        *packed(dense & ~partial),
        BLOCK_SIZE=grid.block_size,
        mask_mod=mask_mod,
        seq_lengths=(grid.q_len, grid.kv_len),
    )
