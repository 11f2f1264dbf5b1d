"""Tiles: the rows of a layout with as many queries and keys each, computed as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from .kept import kept

KEPT_TOKENS = 2**16  # a tiling with no more keys keeps their numbers and its masks


class Geometry(NamedTuple):
    """All that the tiles depend on beside the lists of blocks."""

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
    most_keys: int  # of all tiles of a batch together; one tile may have more


class Tiles:
    """R tiles, one per layout row (and layout head): `height` queries with `n_keys` keys each.

    The last `n_diagonal` keys are those of the diagonal block; query i of a tile sees ``lead + i + 1`` of them, and all
    keys before them.
    """

    def __init__(
        self,
        queries: Tensor,
        blocks: Tensor,
        heads: Tensor,
        kv_heads: Tensor,
        n_keys: int,
        lead: int,
        n_diagonal: int,
        block_size: int,
        is_kept: bool,
    ) -> None:
        self.queries = queries  # (R, height) token of q
        self.blocks = blocks  # (R, n)
        self.heads = heads  # (1 or R, n_heads) head of q
        self.kv_heads = kv_heads  # (1 or R, n_kv_heads) head of k and v
        self.n_keys, self.lead, self.n_diagonal, self.block_size = n_keys, lead, n_diagonal, block_size
        first = queries[:, 0]
        steps = first.diff().unique().tolist()
        # From tile to tile, where all are as far apart.
        self.step: int | None = None if len(steps) > 1 else int(steps[0]) if steps else queries.shape[1]
        self.first, self.last = int(first[0]), int(queries[-1, -1])
        self.kept_keys = self.tokens_of_blocks() if is_kept else None
        self.kept_masks: dict[tuple[torch.dtype, int], Tensor] | None = {} if is_kept else None

    @property
    def height(self) -> int:
        return self.queries.shape[1]

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.heads.shape[1] // self.kv_heads.shape[1]

    def in_place(self, x: Tensor, batches: range) -> Tensor | None:
        """A view (len(batches), R, n_heads, height, dim) of the queries of x (batch, q_len, n_heads, dim), if there is one."""
        if self.step is None or self.group > 1 or x.shape[2] > self.heads.shape[1]:
            return None
        x = x[batches.start : batches.stop, self.first : self.last + 1]
        return x.unfold(1, self.height, self.step).transpose(3, 4)

    def keys(self) -> Tensor:
        """(R, n_keys) token of k and v."""
        return self.tokens_of_blocks() if self.kept_keys is None else self.kept_keys

    def tokens_of_blocks(self) -> Tensor:
        tokens = self.blocks[:, :, None] * self.block_size + torch.arange(self.block_size, device="cpu")
        return tokens.flatten(1)[:, : self.n_keys]

    def causal_mask(self, dtype: torch.dtype, group: int) -> Tensor | None:
        """0 or -inf (group * height, n_keys), for a tile with the queries of `group` heads one after the other."""
        if self.n_diagonal == 0:
            return None
        kept = None if self.kept_masks is None else self.kept_masks.get((dtype, group))
        if kept is None:
            kept = torch.zeros(group, self.height, self.n_keys, dtype=dtype, device="cpu")
            hidden = torch.ones(self.height, self.n_diagonal, dtype=torch.bool, device="cpu")
            kept[:, :, -self.n_diagonal :].masked_fill_(hidden.triu_(self.lead + 1), -torch.inf)
            kept = kept.flatten(0, 1)
            if self.kept_masks is not None:
                self.kept_masks[dtype, group] = kept
        return kept


class Tiling(NamedTuple):
    """The tiles of a problem; `is_whole` if every query belongs to one."""

    tiles: list[Tiles]
    is_whole: bool


def tiling_of(problem: AttentionProblem, most_keys: int) -> Tiling:
    """The tiling of a problem; kept as long as its lists."""
    p = problem
    geometry = Geometry(
        p.block_size, p.first_row, p.q_offset, p.q_len, p.kv_len, len(p.rates), p.is_causal, p.num_heads,
        p.num_kv_heads, p.layout_heads, most_keys,
    )  # fmt: skip
    return kept(p.rows.indices, geometry, lambda: make_tiling(geometry, p.rows.indptr, p.rows.indices))


def make_tiling(g: Geometry, offsets: Tensor, indices: Tensor) -> Tiling:
    block_size = g.block_size
    n_rows = -(-(g.q_len + g.q_offset) // block_size) - g.first_row
    n_cols = -(-g.kv_len // block_size)
    offsets, columns = offsets[:: g.n_classes].long(), indices.long()
    counts = offsets.diff()
    owner = torch.arange(counts.numel(), device="cpu")  # (layout head, row)
    block_row = owner % n_rows + g.first_row
    of_entry = owner.repeat_interleave(counts)
    if g.n_classes > 1:  # the classes of a row follow each other; its last column must come last
        columns = columns[(of_entry * n_cols + columns).argsort()]
    if g.is_causal:
        is_past = columns <= block_row[of_entry]
        columns, of_entry = columns[is_past], of_entry[is_past]
        counts = torch.bincount(of_entry, minlength=owner.numel())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    # What tiles have to have in common: heights, numbers of keys and of those in the diagonal block.
    begin = (block_row * block_size - g.q_offset).clamp(min=0)
    height = ((block_row + 1) * block_size - g.q_offset).clamp(max=g.q_len) - begin
    lead = begin + g.q_offset - block_row * block_size
    last = torch.full_like(counts, -1)
    seen = counts > 0
    last[seen] = columns[offsets[1:][seen] - 1]
    n_last = (g.kv_len - last * block_size).clamp(max=block_size)  # keys of the last block
    is_diagonal = (last == block_row) & g.is_causal
    n_last = torch.where(is_diagonal, torch.minimum(n_last, lead + height), n_last)
    n_diagonal = torch.where(is_diagonal & (height > 1), n_last, 0)

    alike = counts
    for value in (height, lead, n_last, n_diagonal):
        alike = alike * (block_size + 1) + value
    alike, order = alike.masked_fill(~seen, -1).sort(stable=True)  # neighbours share keys: they stay together
    _, sizes = alike.unique_consecutive(return_counts=True)
    order = order[(~seen).sum() :]
    if not bool(seen.all()):
        sizes = sizes[1:]
    is_kept = columns.numel() * block_size <= KEPT_TOKENS
    tiles = []
    for rows in order.split(sizes.tolist()):
        first = rows[0]
        n, n_diag, ends = int(counts[first]), int(n_diagonal[first]), int(n_last[first])
        n_keys = (n - 1) * block_size + ends
        for part in even_split(rows, max(1, g.most_keys // n_keys)):
            heads, kv_heads = heads_of(g, part // n_rows)
            tiles.append(
                Tiles(
                    begin[part][:, None] + torch.arange(int(height[first]), device="cpu"),
                    columns[offsets[part][:, None] + torch.arange(n, device="cpu")],
                    heads,
                    kv_heads,
                    n_keys,
                    int(lead[first]),
                    n_diag,
                    block_size,
                    is_kept,
                )
            )
    return Tiling(tiles, is_whole=bool(seen.all()))


def heads_of(g: Geometry, layout_head: Tensor) -> tuple[Tensor, Tensor]:
    """Heads of q and heads of k and v, (1 or R, n), of tiles of the layout heads (R,)."""
    if g.layout_heads == 1:
        return (
            torch.arange(g.num_heads, device="cpu")[None],
            torch.arange(g.num_kv_heads, device="cpu")[None],
        )
    n_heads = g.num_heads // g.layout_heads
    heads = layout_head[:, None] * n_heads + torch.arange(n_heads, device="cpu")
    return heads, heads[:, :1] // (g.num_heads // g.num_kv_heads)


def even_split(x: Tensor, at_most: int) -> tuple[Tensor, ...]:
    """Parts of nearly equal size, so that no small rest leaves threads idle."""
    return x.tensor_split(-(-x.numel() // at_most))


def batch_parts(batch: int, at_most: int) -> Iterator[range]:
    """Batch elements that are computed together."""
    for start in range(0, batch, at_most):
        yield range(start, min(start + at_most, batch))
