"""The way of all that the fused kernel does not know: gather the active keys of a few rows of tiles, multiply, softmax, multiply; then the next rows.

Names and sizes used below:
    tile    the queries of one layout row of one (batch, head); `height` of them (block_size, or q_len if there
            is only one row, so that decoding one token costs one query).
    used    the blocks that some row of some head sees; the others are not touched.
    piece   `width` keys of one block that share ``j mod stride``, where stride is the largest token dilation
            rate. A block of rate r contributes stride / r pieces, so dropped keys are never touched; without
            token dilation stride is 1 and a piece is a block.
    panel   a few (batch, kv head) pairs, packed tile by tile and piece by piece into memory that the next panel
            uses again.
    chunk   R tiles of a panel that attend to the same number n of pieces, computed as one dense batch. Its
            temporaries hold at most about ELEMENTS_PER_THREAD elements per thread each; a longer row is cut into
            several chunks, which are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..dropout import dropout_keep
from ..problem import AttentionProblem, Gradients
from .padding import padded_keys
from .scratch import Buffers, Scratch

ELEMENTS_PER_THREAD = 2**18  # 1 MiB of float32 scores: they stay in the cache from one step to the next


class Panel(NamedTuple):
    """Some batch elements and kv heads, and the query heads of these."""

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
    """R tiles with n pieces each; all int64."""

    tiles: Tensor  # (R,) index into the packed queries of the panel, by (batch, head, row)
    batch: Tensor  # (R,) of the problem
    head: Tensor  # (R,) of the problem
    position: Tensor  # (R, height) of the queries
    slots: (
        Tensor  # (R, n) piece within its sequence: place of the block among the used ones * stride + residue
    )
    pieces: Tensor  # (R, n) index into the packed keys and values of the panel, by (batch, kv head, slot)
    entries: Tensor  # (R, n) block bias entry
    is_first: bool  # no earlier chunk holds pieces of these tiles


class Tiling:
    """How a problem is cut into tiles, pieces and chunks."""

    def __init__(self, problem: AttentionProblem, buffers: Buffers) -> None:
        self.problem = problem
        self.dtype = torch.promote_types(problem.q.dtype, torch.float32)
        self.scratch = Scratch(self.dtype, buffers)
        self.limit = ELEMENTS_PER_THREAD * torch.get_num_threads()
        self.stride = max(problem.rates)
        self.width = problem.block_size // self.stride
        self.used: Tensor = problem.rows.indices.unique().long()  # ascending; no other block is touched
        self.n_slots = self.used.numel() * self.stride
        tokens = self.used[:, None] * problem.block_size + torch.arange(problem.block_size, device="cpu")
        self.tokens: Tensor = tokens.flatten()  # of the used blocks
        self.present: Tensor = self.tokens[self.tokens < problem.kv_len]
        one_row = problem.n_rows == 1
        self.height = problem.q_len if one_row else problem.block_size
        self.first_position = problem.q_offset if one_row else problem.first_row * problem.block_size
        self.lead = problem.q_offset - self.first_position  # queries of the first tile that do not exist
        self.dead = self.dead_keys()
        self.dead_slots = None if self.dead is None else self.dead.any(-1)

        # The pieces of every (layout head, row), from lists per (layout head, row, dilation class).
        rates = torch.tensor(problem.rates, dtype=torch.int64, device="cpu")
        rows = problem.rows
        counts = rows.indptr.diff().long()
        rate = rates.repeat(counts.numel() // rates.numel()).repeat_interleave(counts)
        copies = self.stride // rate
        ends = torch.cat([copies.new_zeros(1), copies.cumsum(0)])
        self.offsets = ends[rows.indptr[:: rates.numel()].long()]  # (layout_heads * n_rows + 1,)
        self.rate = rate.repeat_interleave(copies)
        nth = torch.arange(self.rate.numel(), device="cpu") - ends[:-1].repeat_interleave(copies)
        place = torch.searchsorted(self.used, rows.indices.long())
        self.slots = place.repeat_interleave(copies) * self.stride + nth * self.rate  # for head 0
        self.entries = rows.block_ids.long().repeat_interleave(copies)

    # ---- panels: parts of the problem's tensors, as matrices with one tile or piece per row

    def panels(self) -> Iterator[Panel]:
        p = self.problem
        group = p.num_heads // p.num_kv_heads
        per_sequence = max(self.tokens.numel(), p.q_len * group, 1) * max(p.head_dim, p.v_head_dim)
        n_sequences = max(1, 2 * self.limit // per_sequence)
        n_kv_heads = min(n_sequences, p.num_kv_heads)
        n_batches = max(1, n_sequences // p.num_kv_heads)
        for b in range(0, p.batch, n_batches):
            for h in range(0, p.num_kv_heads, n_kv_heads):
                end = min(h + n_kv_heads, p.num_kv_heads)
                yield Panel(
                    slice(b, min(b + n_batches, p.batch)), slice(h, end), slice(h * group, end * group)
                )

    def pack_queries(self, name: str, x: Tensor, fill: float = 0.0) -> Tensor:
        """(batches, q_len, heads, dim) -> (tiles, height * dim); `fill` for queries that do not exist."""
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
            x = x[:, self.present]  # not index_select, which copies all of a tensor that is not contiguous
        tokens = self.pack(name, x, 0, self.tokens.numel())
        by_piece = tokens.view(batches, heads, self.used.numel(), self.width, self.stride, dim).transpose(
            3, 4
        )
        if p.kv_lengths is not None or p.key_padding_mask is not None:
            # A cache may hold anything behind its end, and 0 * NaN is NaN.
            assert self.dead is not None
            by_piece.masked_fill_(self.dead[panel.batches].view(batches, 1, *by_piece.shape[2:5], 1), 0.0)
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
        """(batches, tokens, heads, dim) -> (batches, heads, length, dim), filled up before and after the tokens."""
        batches, n_tokens, heads, dim = x.shape
        out = self.scratch.take(name, batches, heads, length, dim, dtype=x.dtype)
        out[:, :, :lead] = fill
        out[:, :, lead + n_tokens :] = fill
        out[:, :, lead : lead + n_tokens] = x.transpose(1, 2)
        return out

    def dead_keys(self) -> Tensor | None:
        """Padding and the keys after the end, bool (batch, n_slots, width); None if there are none."""
        p, n_present = self.problem, self.present.numel()
        padded = padded_keys(p)
        if n_present == self.tokens.numel() and padded is None:
            return None
        dead = (self.tokens >= p.kv_len).repeat(p.batch, 1)
        if padded is not None:
            dead[:, :n_present] |= padded[:, self.present]
        return (
            dead.view(p.batch, self.used.numel(), self.width, self.stride)
            .transpose(2, 3)
            .reshape(p.batch, self.n_slots, self.width)
        )

    # ---- chunks

    def chunks(self, panel: Panel) -> Iterator[Chunk]:
        """The work of a panel, ordered so that the chunks of one tile come in the order of their pieces."""
        p = self.problem
        n_batches, n_heads = (part.stop - part.start for part in (panel.batches, panel.heads))
        tile = torch.arange(n_batches * n_heads * p.n_rows, device="cpu")
        head = panel.heads.start + tile // p.n_rows % n_heads
        lists = head // (p.num_heads // p.layout_heads) * p.n_rows + tile % p.n_rows
        n_pieces = self.offsets.diff()[lists]
        per_piece = self.width * max(self.height, p.head_dim, p.v_head_dim)
        longest = max(1, self.limit // per_piece)
        for begin in range(0, int(n_pieces.max()), longest):
            n_here = (n_pieces - begin).clamp(0, longest)
            n_sorted, order = n_here.sort(stable=True)  # neighbouring rows stay together: they share keys
            sizes, counts = n_sorted.unique_consecutive(return_counts=True)
            for n, same in zip(sizes.tolist(), order.split(counts.tolist()), strict=True):
                if n == 0:
                    continue
                for tiles in even_split(same, max(1, self.limit // (n * per_piece))):
                    yield self.chunk(panel, tiles, self.offsets[lists[tiles]] + begin, n, is_first=begin == 0)

    def chunk(self, panel: Panel, tiles: Tensor, starts: Tensor, n: int, is_first: bool) -> Chunk:
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
        return Chunk(tiles, batch, head, position, slots, pieces, self.entries[listed], is_first)

    # ---- what forward and backward share

    def scores(self, chunk: Chunk, q: Tensor, k: Tensor) -> Tensor:
        """Scaled, biased and masked scores (R, height, n * width), of q (R, height, dim) and k (R, n * width, dim)."""
        p, (n_tiles, n) = self.problem, chunk.slots.shape
        scores = self.scratch.take("scores", n_tiles, self.height, n * self.width)
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=p.softmax_scale, out=scores)
        by_piece = scores.view(n_tiles, self.height, n, self.width)
        if p.block_bias is not None:
            n_batches, n_heads, _ = p.block_bias.shape
            bias = p.block_bias[
                chunk.batch[:, None] % n_batches, chunk.head[:, None] % n_heads, chunk.entries
            ]
            by_piece += bias[:, None, :, None]
        self.hide(chunk, by_piece.transpose(1, 2))
        return scores

    def first_keys(self, slots: Tensor) -> Tensor:
        """The first key of each piece."""
        return self.used[slots // self.stride] * self.problem.block_size + slots % self.stride

    def hide(self, chunk: Chunk, scores: Tensor) -> None:
        """Set what a query may not see to -inf in scores (R, n, height, width); most pieces need no mask."""
        p, slots = self.problem, chunk.slots
        first = self.first_keys(slots)
        partial = torch.zeros_like(slots, dtype=torch.bool)
        if p.is_causal:
            partial |= first + (self.width - 1) * self.stride > chunk.position[:, :1]
        if self.dead_slots is not None:
            partial |= self.dead_slots[chunk.batch[:, None], slots]
        tile, piece = partial.nonzero(as_tuple=True)  # (T,)
        if tile.numel() == 0:
            return
        hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device="cpu")
        if p.is_causal:
            key = first[tile, piece][:, None] + torch.arange(0, p.block_size, self.stride, device="cpu")
            hidden = key[:, None, :] > chunk.position[tile][:, :, None]  # (T, height, width)
        if self.dead is not None:
            hidden = hidden | self.dead[chunk.batch[tile], slots[tile, piece]][:, None, :]
        scores[tile, piece] = scores[tile, piece].masked_fill(hidden, -torch.inf)

    def dropout_factor(self, chunk: Chunk) -> Tensor:
        """0 or 1 / (1 - dropout_p) for every weight, (R, height, n * width)."""
        p, slots = self.problem, chunk.slots
        assert p.seed is not None
        first = self.first_keys(slots)
        key = (first[:, :, None] + torch.arange(0, p.block_size, self.stride, device="cpu")).flatten(1)
        batch_head = chunk.batch * p.num_heads + chunk.head
        query = chunk.position - p.q_offset
        keep = dropout_keep(
            p.seed, p.dropout_p, key[:, None, :], query[:, :, None], batch_head[:, None, None]
        )
        return keep.to(self.dtype).div_(1.0 - p.dropout_p)


def even_split(x: Tensor, at_most: int) -> tuple[Tensor, ...]:
    """Parts of nearly equal size, so that no small rest leaves threads idle."""
    return x.tensor_split(-(-x.numel() // at_most))


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p, tiling = problem, Tiling(problem, buffers)
    out = p.q.new_empty(p.batch, p.q_len, p.num_heads, p.v_head_dim)
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=tiling.dtype, device="cpu")
    for panel in tiling.panels():
        out_tiles, lse_tiles = forward_panel(tiling, panel)
        tiling.unpack_queries(out_tiles, out[panel.queries])
        tiling.unpack_queries(lse_tiles, lse.transpose(1, 2)[panel.queries].unsqueeze(-1))
    return out, lse


def forward_panel(tiling: Tiling, panel: Panel) -> tuple[Tensor, Tensor]:
    """out (tiles, height * v_head_dim) and lse (tiles, height)."""
    p, scratch, height = tiling.problem, tiling.scratch, tiling.height
    q = tiling.pack_queries("all q", p.q[panel.queries])
    k, v = (tiling.pack_keys(name, x[panel.keys], panel) for name, x in (("all k", p.k), ("all v", p.v)))
    out = scratch.take("all out", q.shape[0], height * p.v_head_dim).zero_()
    lse = scratch.take("all lse", q.shape[0], height).fill_(-torch.inf)
    finite = torch.finfo(tiling.dtype)
    for chunk in tiling.chunks(panel):
        n_tiles, n_keys = chunk.tiles.numel(), chunk.slots.shape[1] * tiling.width
        q_tile = scratch.gather("q", q, chunk.tiles).view(n_tiles, height, p.head_dim)
        k_tile = scratch.gather("kv", k, chunk.pieces).view(n_tiles, n_keys, p.head_dim)
        weights = tiling.scores(chunk, q_tile, k_tile)  # not yet
        largest = weights.amax(-1, keepdim=True).clamp_(min=finite.min)  # finite for a query that sees no key
        weights.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)  # 0, or at least 1
        if p.dropout_p > 0.0:
            weights *= tiling.dropout_factor(chunk)
        v_tile = scratch.gather("kv", v, chunk.pieces).view(n_tiles, n_keys, p.v_head_dim)
        part = scratch.take("out", n_tiles, height, p.v_head_dim)
        torch.bmm(weights, v_tile, out=part).div_(total.clamp(min=finite.tiny))
        part_lse = largest.add_(total.log_())  # (R, height, 1)
        if not chunk.is_first:
            both = torch.logaddexp(lse[chunk.tiles].unsqueeze(-1), part_lse)
            share = (part_lse - both.clamp(min=finite.min)).exp_()
            part.lerp_(out[chunk.tiles].view_as(part), 1.0 - share)
            part_lse = both
        out.index_copy_(0, chunk.tiles, part.view(n_tiles, -1))
        lse.index_copy_(0, chunk.tiles, part_lse.view(n_tiles, height))
    return out, lse


def backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Buffers,
) -> Gradients:
    p, tiling = problem, Tiling(problem, buffers)
    grads = [torch.empty(x.shape, dtype=x.dtype, device="cpu") for x in (p.q, p.k, p.v)]
    grad_bias = None
    if p.block_bias is not None:
        grad_bias = torch.zeros(
            p.batch, p.num_heads, p.rows.block_ids.numel(), dtype=tiling.dtype, device="cpu"
        )
    for panel in tiling.panels():
        own = panel.queries
        own_lse, d_out = lse.transpose(1, 2)[own], grad_out[own]
        delta = (d_out.to(tiling.dtype) * out[own]).sum(-1, keepdim=True)  # (batches, q_len, heads, 1)
        if grad_lse is not None:
            delta -= grad_lse.transpose(1, 2)[own].unsqueeze(-1)
        # Queries that see no key or do not exist: weights exp(score - inf) = 0, whatever gradient arrives.
        empty = (own_lse == -torch.inf).unsqueeze(-1)
        if bool(empty.any()):
            delta, d_out = delta.masked_fill(empty, 0.0), d_out.masked_fill(empty, 0.0)
        minus_lse = -own_lse.unsqueeze(-1).masked_fill(empty, torch.inf)
        d_q, d_k, d_v = backward_panel(
            tiling,
            panel,
            tiling.pack_queries("all d out", d_out),
            tiling.pack_queries("all delta", delta),
            tiling.pack_queries("all lse", minus_lse, fill=-torch.inf),
            grad_bias,
        )
        tiling.unpack_queries(d_q, grads[0][own])
        tiling.unpack_keys(d_k, grads[1][panel.keys])
        tiling.unpack_keys(d_v, grads[2][panel.keys])
    return Gradients(grads[0], grads[1], grads[2], grad_bias)


def backward_panel(
    tiling: Tiling, panel: Panel, d_out: Tensor, delta: Tensor, minus_lse: Tensor, grad_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the packed q, k and v; adds to grad_bias. delta is sum(out * d_out) - d_lse per query."""
    p, scratch, height = tiling.problem, tiling.scratch, tiling.height
    q = tiling.pack_queries("all q", p.q[panel.queries])
    k, v = (tiling.pack_keys(name, x[panel.keys], panel) for name, x in (("all k", p.k), ("all v", p.v)))
    d_q, d_k, d_v = (
        scratch.take(name, *x.shape).zero_() for name, x in (("all d q", q), ("all d k", k), ("all d v", v))
    )
    for chunk in tiling.chunks(panel):
        n_tiles, n = chunk.slots.shape
        n_keys, pieces = n * tiling.width, chunk.pieces.flatten()
        q_tile = scratch.gather("q", q, chunk.tiles).view(n_tiles, height, p.head_dim)
        k_tile = scratch.gather("k", k, pieces).view(n_tiles, n_keys, p.head_dim)
        v_tile = scratch.gather("v", v, pieces).view(n_tiles, n_keys, p.v_head_dim)
        d_out_tile = scratch.gather("d out", d_out, chunk.tiles).view(n_tiles, height, p.v_head_dim)

        weights = tiling.scores(chunk, q_tile, k_tile).add_(minus_lse[chunk.tiles].unsqueeze(-1)).exp_()
        d_scores = scratch.take("d scores", n_tiles, height, n_keys)
        torch.bmm(
            d_out_tile, v_tile.transpose(1, 2), out=d_scores
        )  # so far the gradient of the dropped weights
        kept = weights
        if p.dropout_p > 0.0:
            factor = tiling.dropout_factor(chunk)
            d_scores *= factor
            kept = weights * factor
        torch.bmm(kept.transpose(1, 2), d_out_tile, out=v_tile)  # the values have served
        d_v.index_add_(0, pieces, v_tile.view(pieces.numel(), -1))
        d_scores.sub_(delta[chunk.tiles].unsqueeze(-1)).mul_(weights)
        if grad_bias is not None:
            per_piece = d_scores.view(n_tiles, height, n, tiling.width).sum((1, 3))
            place = (chunk.batch * p.num_heads + chunk.head)[:, None] * grad_bias.shape[2] + chunk.entries
            grad_bias.view(-1).index_add_(0, place.flatten(), per_piece.flatten())
        d_q_tile = scratch.take("d q", n_tiles, height, p.head_dim)
        torch.baddbmm(d_q_tile, d_scores, k_tile, beta=0, alpha=p.softmax_scale, out=d_q_tile)
        d_q.index_add_(0, chunk.tiles, d_q_tile.view(n_tiles, -1))
        torch.baddbmm(k_tile, d_scores.transpose(1, 2), q_tile, beta=0, alpha=p.softmax_scale, out=k_tile)
        d_k.index_add_(0, pieces, k_tile.view(pieces.numel(), -1))
    return d_q, d_k, d_v
