"""Tiles: layout rows with the same number of queries and of keys, which can be computed as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...layout.lists import BlockLists
from ..problem import AttentionProblem
from .list_cache import cached

MAX_CACHED_TOKENS = 2**16  # a tiling with at most this many keys caches their tokens and its masks


class Geometry(NamedTuple):
    """Everything a tiling depends on besides the block lists."""

    block_size: int
    first_row: int
    q_offset: int
    q_len: int
    kv_len: int
    n_classes: int
    is_causal: bool
    num_heads: int
    num_kv_heads: int
    layout_heads: int
    max_keys: int  # in all tiles of a batch together; a single tile may have more


class Tiles:
    """R tiles, one per layout row (and layout head), of `height` queries and `n_keys` keys each.

    The last `n_diagonal` keys belong to the diagonal block: query i of a tile sees the first ``lead + i + 1`` of them,
    and all keys before them.
    """

    def __init__(
        self,
        queries: Tensor,
        blocks: Tensor,
        block_ids: Tensor,
        heads: Tensor,
        kv_heads: Tensor,
        n_keys: int,
        lead: int,
        n_diagonal: int,
        block_size: int,
        cache: bool,
    ) -> None:
        self.queries = queries  # (R, height) token of q
        self.blocks = blocks  # (R, n) column of the layout
        self.block_ids = block_ids  # (R, n)
        self.heads = heads  # (1 or R, n_heads) head of q
        self.kv_heads = kv_heads  # (1 or R, n_kv_heads) head of k and v
        self.n_keys, self.lead, self.n_diagonal, self.block_size = n_keys, lead, n_diagonal, block_size
        first = queries[:, 0]
        steps = first.diff().unique().tolist()
        # Tokens from tile to tile; None if the tiles are not evenly spaced.
        self.step: int | None = None if len(steps) > 1 else int(steps[0]) if steps else queries.shape[1]
        self.first, self.last = int(first[0]), int(queries[-1, -1])
        self.cached_keys = self.tokens_of_blocks() if cache else None
        self.cached_masks: dict[tuple[torch.dtype, int], Tensor] | None = {} if cache else None

    @property
    def height(self) -> int:
        return self.queries.shape[1]

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.heads.shape[1] // self.kv_heads.shape[1]

    def in_place(self, x: Tensor, batches: range) -> Tensor | None:
        """The queries of x (batch, q_len, n_heads, dim) as a view (len(batches), R, n_heads, height, dim), or None."""
        if self.step is None or self.group > 1 or x.shape[2] > self.heads.shape[1]:
            return None
        x = x[batches.start : batches.stop, self.first : self.last + 1]
        return x.unfold(1, self.height, self.step).transpose(3, 4)

    def keys(self) -> Tensor:
        """(R, n_keys) token of k and v."""
        return self.tokens_of_blocks() if self.cached_keys is None else self.cached_keys

    def tokens_of_blocks(self) -> Tensor:
        tokens = self.blocks[:, :, None] * self.block_size + torch.arange(self.block_size, device="cpu")
        return tokens.flatten(1)[:, : self.n_keys]

    def causal_mask(self, dtype: torch.dtype, group: int) -> Tensor | None:
        """0 or -inf (group * height, n_keys), for the queries of `group` heads, one head after the other."""
        if self.n_diagonal == 0:
            return None
        mask = None if self.cached_masks is None else self.cached_masks.get((dtype, group))
        if mask is None:
            mask = torch.zeros(group, self.height, self.n_keys, dtype=dtype, device="cpu")
            hidden = torch.ones(self.height, self.n_diagonal, dtype=torch.bool, device="cpu")
            mask[:, :, -self.n_diagonal :].masked_fill_(hidden.triu_(self.lead + 1), -torch.inf)
            mask = mask.flatten(0, 1)
            if self.cached_masks is not None:
                self.cached_masks[dtype, group] = mask
        return mask


class Tiling(NamedTuple):
    """The tiles of a problem; `is_complete` if every query belongs to one."""

    tiles: list[Tiles]
    is_complete: bool


def tiling_of(problem: AttentionProblem, max_keys: int) -> Tiling:
    """The tiling of a problem, cached with its lists."""
    p = problem
    geometry = Geometry(
        p.block_size, p.first_row, p.q_offset, p.q_len, p.kv_len, len(p.rates), p.is_causal, p.num_heads,
        p.num_kv_heads, p.layout_heads, max_keys,
    )  # fmt: skip
    return cached(p.rows.indices, geometry, lambda: make_tiling(geometry, p.rows))


def make_tiling(g: Geometry, lists: BlockLists) -> Tiling:
    block_size = g.block_size
    n_rows = -(-(g.q_len + g.q_offset) // block_size) - g.first_row
    n_cols = -(-g.kv_len // block_size)
    offsets, columns, block_ids = lists.indptr[:: g.n_classes].long(), lists.indices.long(), lists.block_ids
    counts = offsets.diff()
    owner = torch.arange(counts.numel(), device="cpu")  # (layout head, row)
    block_row = owner % n_rows + g.first_row
    of_entry = owner.repeat_interleave(counts)
    if g.n_classes > 1:  # the distance classes of a row are separate lists: sort its columns
        by_column = (of_entry * n_cols + columns).argsort()
        columns, block_ids = columns[by_column], block_ids[by_column]
    if g.is_causal:
        is_past = columns <= block_row[of_entry]
        columns, block_ids, of_entry = columns[is_past], block_ids[is_past], of_entry[is_past]
        counts = torch.bincount(of_entry, minlength=owner.numel())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    # Rows with equal heights, numbers of keys and of keys in the diagonal block form the tiles of a batch.
    begin = (block_row * block_size - g.q_offset).clamp(min=0)
    height = ((block_row + 1) * block_size - g.q_offset).clamp(max=g.q_len) - begin
    lead = begin + g.q_offset - block_row * block_size
    last = torch.full_like(counts, -1)
    seen = counts > 0
    last[seen] = columns[offsets[1:][seen] - 1]
    n_last = (g.kv_len - last * block_size).clamp(max=block_size)  # keys in the last block
    is_diagonal = (last == block_row) & g.is_causal
    n_last = torch.where(is_diagonal, torch.minimum(n_last, lead + height), n_last)
    n_diagonal = torch.where(is_diagonal & (height > 1), n_last, 0)

    alike = counts
    for value in (height, lead, n_last, n_diagonal):
        alike = alike * (block_size + 1) + value
    # stable, because neighbouring rows share keys
    alike, order = alike.masked_fill(~seen, -1).sort(stable=True)
    _, sizes = alike.unique_consecutive(return_counts=True)
    order = order[(~seen).sum() :]
    if not bool(seen.all()):
        sizes = sizes[1:]
    cache = columns.numel() * block_size <= MAX_CACHED_TOKENS
    tiles = []
    for rows in order.split(sizes.tolist()):
        first = rows[0]
        n, n_diag, ends = int(counts[first]), int(n_diagonal[first]), int(n_last[first])
        n_keys = (n - 1) * block_size + ends
        for part in even_split(rows, max(1, g.max_keys // n_keys)):
            heads, kv_heads = heads_of(g, part // n_rows)
            listed = offsets[part][:, None] + torch.arange(n, device="cpu")
            tiles.append(
                Tiles(
                    begin[part][:, None] + torch.arange(int(height[first]), device="cpu"),
                    columns[listed],
                    block_ids[listed],
                    heads,
                    kv_heads,
                    n_keys,
                    int(lead[first]),
                    n_diag,
                    block_size,
                    cache,
                )
            )
    return Tiling(tiles, is_complete=bool(seen.all()))


def heads_of(g: Geometry, layout_head: Tensor) -> tuple[Tensor, Tensor]:
    """Heads of q and heads of k and v, (1 or R, n) each, for tiles of the layout heads (R,)."""
    if g.layout_heads == 1:
        return (
            torch.arange(g.num_heads, device="cpu")[None],
            torch.arange(g.num_kv_heads, device="cpu")[None],
        )
    n_heads = g.num_heads // g.layout_heads
    heads = layout_head[:, None] * n_heads + torch.arange(n_heads, device="cpu")
    return heads, heads[:, :1] // (g.num_heads // g.num_kv_heads)


def even_split(x: Tensor, max_size: int) -> tuple[Tensor, ...]:
    """Parts of nearly equal size: a small last part would leave threads idle."""
    return x.tensor_split(-(-x.numel() // max_size))


def batch_ranges(batch: int, max_size: int) -> Iterator[range]:
    """The batch elements in ranges of at most `max_size`."""
    for start in range(0, batch, max_size):
        yield range(start, min(start + max_size, batch))
