"""Chunking: how a problem is divided into panels and chunks, and packed for dense batched products.

Terms and sizes:
    tile    the queries of one layout row of one (batch, head): `height` of them, which is block_size, or q_len if
            there is only one row, so that decoding one token costs one query.
    used    the blocks that a row of some head sees; other blocks are not read.
    piece   `width` keys of a block that share ``j mod stride``, where stride is the largest token dilation rate. A
            block of rate r contributes stride / r pieces, so that dropped keys are never read. Without token
            dilation stride is 1 and a piece is a block.
    slot    number of a piece within its sequence: index of the block among the used ones * stride + residue.
    panel   a few (batch, kv head) pairs, packed by tile and by piece into memory that the next panel reuses.
    chunk   R tiles of a panel with n pieces each, computed as one dense batch. Its temporaries hold about
            ELEMENTS_PER_THREAD elements per thread at most; longer rows are divided into several chunks, whose results
            are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from .padding import padded_keys
from .scratch import Buffers, Scratch
from .tiles import even_split

ELEMENTS_PER_THREAD = 2**18  # 1 MiB of float32 scores, which stay in the cache between the steps


class Panel(NamedTuple):
    """Some batch elements and kv heads, with the query heads of these."""

    batches: slice
    kv_heads: slice
    heads: slice

    @property
    def queries(self) -> tuple[slice, slice, slice]:
        """Index of a (batch, q_len, num_heads, ...) tensor."""
        return self.batches, slice(None), self.heads

    @property
    def keys(self) -> tuple[slice, slice, slice]:
        """Index of a (batch, kv_len, num_kv_heads, ...) tensor."""
        return self.batches, slice(None), self.kv_heads


class Chunk(NamedTuple):
    """R tiles with n pieces each; all tensors are int64."""

    tiles: Tensor  # (R,) index into the packed queries of the panel, which are ordered by (batch, head, row)
    batch: Tensor  # (R,) batch element
    head: Tensor  # (R,) query head
    position: Tensor  # (R, height) of the queries
    slots: Tensor  # (R, n)
    first_keys: Tensor  # (R, n) position of the first key of each piece
    # (R, n) index into the packed keys of the panel, which are ordered by (batch, kv head, slot)
    pieces: Tensor
    block_ids: Tensor  # (R, n) place of the block in the bias and in the masks inside blocks
    is_first: bool  # no earlier chunk has pieces of these tiles


class Chunking:
    """Divides a problem into panels and chunks."""

    def __init__(self, problem: AttentionProblem, buffers: Buffers) -> None:
        self.problem = problem
        self.dtype = torch.promote_types(problem.q.dtype, torch.float32)
        self.scratch = Scratch(self.dtype, buffers)
        self.max_elements = ELEMENTS_PER_THREAD * torch.get_num_threads()
        self.stride = max(problem.rates)
        self.width = problem.block_size // self.stride
        self.used: Tensor = problem.rows.indices.unique().long()  # ascending
        self.n_slots = self.used.numel() * self.stride
        tokens = self.used[:, None] * problem.block_size + torch.arange(problem.block_size, device="cpu")
        self.tokens: Tensor = tokens.flatten()  # of the used blocks, also past kv_len
        self.present: Tensor = self.tokens[self.tokens < problem.kv_len]
        one_row = problem.n_rows == 1
        self.height = problem.q_len if one_row else problem.block_size
        self.first_position = problem.q_offset if one_row else problem.first_row * problem.block_size
        # positions of the first tile before the first query
        self.lead = problem.q_offset - self.first_position
        self.hidden = self.hidden_keys()
        self.hidden_slots = None if self.hidden is None else self.hidden.any(-1)

        # Pieces of every (layout head, row); the block lists are per (layout head, row, distance class).
        rates = torch.tensor(problem.rates, dtype=torch.int64, device="cpu")
        rows = problem.rows
        counts = rows.indptr.diff().long()
        rate = rates.repeat(counts.numel() // rates.numel()).repeat_interleave(counts)
        n_pieces = self.stride // rate  # of every entry
        ends = torch.cat([n_pieces.new_zeros(1), n_pieces.cumsum(0)])
        self.offsets = ends[rows.indptr[:: rates.numel()].long()]  # (layout_heads * n_rows + 1,)
        self.rate = rate.repeat_interleave(n_pieces)
        residue = torch.arange(self.rate.numel(), device="cpu") - ends[:-1].repeat_interleave(n_pieces)
        used = torch.searchsorted(self.used, rows.indices.long())
        self.slots = used.repeat_interleave(n_pieces) * self.stride + residue * self.rate  # of head 0
        self.block_ids = rows.block_ids.long().repeat_interleave(n_pieces)

    # ---- panels: parts of the tensors, packed as matrices with a tile or a piece per row

    def panels(self) -> Iterator[Panel]:
        """(batch, kv head) pairs, as many at a time as the size limit allows."""
        p = self.problem
        group = p.num_heads // p.num_kv_heads
        per_sequence = max(self.tokens.numel(), p.q_len * group, 1) * max(p.head_dim, p.v_head_dim)
        n_sequences = max(1, 2 * self.max_elements // per_sequence)
        n_kv_heads = min(n_sequences, p.num_kv_heads)
        n_batches = max(1, n_sequences // p.num_kv_heads)
        for b in range(0, p.batch, n_batches):
            for h in range(0, p.num_kv_heads, n_kv_heads):
                end = min(h + n_kv_heads, p.num_kv_heads)
                yield Panel(
                    slice(b, min(b + n_batches, p.batch)), slice(h, end), slice(h * group, end * group)
                )

    def pack_queries(self, name: str, x: Tensor, fill: float = 0.0) -> Tensor:
        """(batches, q_len, heads, dim) -> (tiles, height * dim); positions without a query get `fill`."""
        length = self.problem.n_rows * self.height
        return self.pack(name, x, self.lead, length, fill).view(-1, self.height * x.shape[3])

    def unpack_queries(self, tiles: Tensor, out: Tensor) -> None:
        """(tiles, height * dim) -> (batches, q_len, heads, dim)."""
        batches, q_len, heads, dim = out.shape
        x = tiles.view(batches, heads, self.problem.n_rows * self.height, dim)
        out.copy_(x[:, :, self.lead : self.lead + q_len].transpose(1, 2))

    def pack_keys(self, name: str, x: Tensor, panel: Panel) -> Tensor:
        """(batches, kv_len, kv_heads, dim) -> (pieces, width * dim)."""
        p = self.problem
        batches, n_keys, heads, dim = x.shape
        if self.present.numel() < n_keys:
            x = x[:, self.present]  # index_select would copy all of a tensor that is not contiguous
        tokens = self.pack(name, x, 0, self.tokens.numel())
        by_piece = tokens.view(batches, heads, self.used.numel(), self.width, self.stride, dim).transpose(
            3, 4
        )
        if p.kv_lengths is not None or p.key_padding_mask is not None:
            # Memory past the end of a cache may hold NaN, and 0 * NaN is NaN.
            assert self.hidden is not None
            by_piece.masked_fill_(self.hidden[panel.batches].view(batches, 1, *by_piece.shape[2:5], 1), 0.0)
        if self.stride > 1:
            by_piece = self.scratch.take(name + " by piece", *by_piece.shape, dtype=x.dtype).copy_(by_piece)
        return by_piece.view(-1, self.width * dim)

    def unpack_keys(self, pieces: Tensor, out: Tensor) -> None:
        """(pieces, width * dim) -> (batches, kv_len, kv_heads, dim)."""
        batches, kv_len, heads, dim = out.shape
        n_present = self.present.numel()
        x = pieces.view(batches, heads, self.used.numel(), self.stride, self.width, dim).transpose(3, 4)
        x = x.reshape(batches, heads, self.tokens.numel(), dim)[:, :, :n_present].transpose(1, 2)
        if n_present == kv_len:
            out.copy_(x)
        else:
            out.zero_().index_copy_(1, self.present, x.to(out.dtype))

    def pack(self, name: str, x: Tensor, lead: int, length: int, fill: float = 0.0) -> Tensor:
        """(batches, tokens, heads, dim) -> (batches, heads, length, dim), with `fill` before and after the tokens."""
        batches, n_tokens, heads, dim = x.shape
        out = self.scratch.take(name, batches, heads, length, dim, dtype=x.dtype)
        out[:, :, :lead] = fill
        out[:, :, lead + n_tokens :] = fill
        out[:, :, lead : lead + n_tokens] = x.transpose(1, 2)
        return out

    def hidden_keys(self) -> Tensor | None:
        """Padding and positions past kv_len, bool (batch, n_slots, width); None if there are none."""
        p, n_present = self.problem, self.present.numel()
        padded = padded_keys(p)
        if n_present == self.tokens.numel() and padded is None:
            return None
        hidden = (self.tokens >= p.kv_len).repeat(p.batch, 1)
        if padded is not None:
            hidden[:, :n_present] |= padded[:, self.present]
        return (
            hidden.view(p.batch, self.used.numel(), self.width, self.stride)
            .transpose(2, 3)
            .reshape(p.batch, self.n_slots, self.width)
        )

    # ---- chunks

    def chunks(self, panel: Panel) -> Iterator[Chunk]:
        """The chunks of a panel; those of the same tile come in the order of their pieces."""
        p = self.problem
        n_batches, n_heads = (part.stop - part.start for part in (panel.batches, panel.heads))
        tile = torch.arange(n_batches * n_heads * p.n_rows, device="cpu")
        head = panel.heads.start + tile // p.n_rows % n_heads
        lists = head // (p.num_heads // p.layout_heads) * p.n_rows + tile % p.n_rows
        n_pieces = self.offsets.diff()[lists]
        per_piece = self.width * max(self.height, p.head_dim, p.v_head_dim)
        max_pieces = max(1, self.max_elements // per_piece)
        for begin in range(0, int(n_pieces.max()), max_pieces):
            n_here = (n_pieces - begin).clamp(0, max_pieces)
            n_sorted, order = n_here.sort(stable=True)  # stable, because neighbouring rows share keys
            sizes, counts = n_sorted.unique_consecutive(return_counts=True)
            for n, same in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
                if n == 0:
                    continue
                for tiles in even_split(same, max(1, self.max_elements // (n * per_piece))):
                    yield self.chunk(panel, tiles, self.offsets[lists[tiles]] + begin, n, is_first=begin == 0)

    def chunk(self, panel: Panel, tiles: Tensor, starts: Tensor, n: int, is_first: bool) -> Chunk:
        """The chunk of some tiles with n pieces each, which begin at `starts` in the list of all pieces."""
        p = self.problem
        group, n_heads = p.num_heads // p.num_kv_heads, panel.heads.stop - panel.heads.start
        row, sequence = tiles % p.n_rows, tiles // p.n_rows // group  # of the panel's (batch, kv head) pairs
        batch = panel.batches.start + tiles // (n_heads * p.n_rows)
        head = panel.heads.start + tiles // p.n_rows % n_heads
        listed = starts[:, None] + torch.arange(n, device="cpu")
        slots = self.slots[listed]
        if self.stride > 1:
            slots += head[:, None] % self.rate[listed]
        pieces = sequence[:, None] * self.n_slots + slots
        position = self.first_position + row[:, None] * self.height + torch.arange(self.height, device="cpu")
        first_keys = self.used[slots // self.stride] * p.block_size + slots % self.stride
        return Chunk(
            tiles, batch, head, position, slots, first_keys, pieces, self.block_ids[listed], is_first
        )

    def keys_of(self, first_keys: Tensor) -> Tensor:
        """The positions of all keys of pieces with these first keys, one more dimension."""
        within = torch.arange(0, self.problem.block_size, self.stride, device="cpu")
        return first_keys.unsqueeze(-1) + within
