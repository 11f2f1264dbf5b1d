"""Long rows: one kernel call per row, on gathered blocks that stay in their slots for the next rows.

Many rows share most of their blocks. The slots hold the blocks of one row, in any order; for the next row, one that
shares many of them (`RowSchedule`), only the missing blocks are copied, over those that are no longer needed. Blocks
that are adjacent in memory are not copied at all. Queries, outputs and their gradients are read and written in place.

Views are made for all rows at once, by `split`, because slicing per row costs time in every kernel call.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import fused_kernel
from .padding import hidden_keys
from .row_schedule import schedule_of
from .scratch import Buffers, Scratch

MAX_QUERIES = 256  # of the heads of a group in one kernel call; more are not faster
# of k in one kernel call of the backward, so that its gradients stay in the cache
MAX_BACKWARD_ELEMENTS = 2**17


class Row(NamedTuple):
    """A layout row with its gathered keys and values."""

    number: int
    blocks: list[int]  # n of them, in the order of their keys in k and v
    k: Tensor  # (1, num_kv_heads, n * block_size, head_dim)
    v: Tensor
    mask: Tensor | None  # 0 or -inf, (1 or n_queries, n * block_size)

    def pieces(self) -> list[Row]:
        """Split the keys into parts of nearly equal size, at most MAX_BACKWARD_ELEMENTS but at least one block each."""
        n = len(self.blocks)
        size = self.k.shape[2] // n
        n_pieces = min(n, -(-self.k.numel() // MAX_BACKWARD_ELEMENTS))
        pieces = []
        for start, end in itertools.pairwise(n * i // n_pieces for i in range(n_pieces + 1)):
            keys = slice(start * size, end * size)
            mask = None if self.mask is None else self.mask[:, keys]
            pieces.append(
                Row(self.number, self.blocks[start:end], self.k[:, :, keys], self.v[:, :, keys], mask)
            )
        return pieces


class BlockSlots:
    """Slots with gathered blocks of k and v, and the masks of their keys."""

    def __init__(self, problem: AttentionProblem, dtype: torch.dtype, buffers: Buffers) -> None:
        p = self.problem = problem
        self.dtype = dtype
        is_readable = p.kv_lengths is None and p.key_padding_mask is None and p.k.dtype == dtype
        is_readable = is_readable and all(x.stride(3) == 1 and x.stride(1) >= x.shape[3] for x in (p.k, p.v))
        self.schedule = schedule_of(p, p.kv_len // p.block_size if is_readable else 0)
        self.heads_per_call = heads_per_call(p)
        shape = (self.schedule.n_slots, p.block_size, p.num_kv_heads)
        scratch = Scratch(dtype, buffers)
        self.k, self.v = (scratch.take(name, *shape, x.shape[3]) for name, x in (("k", p.k), ("v", p.v)))
        self.hidden = hidden_keys(p)  # bool (batch, n_cols, block_size)
        self.wide_mask = self.make_wide_mask() if p.is_causal else None

    def make_wide_mask(self) -> Tensor:
        """Causal mask of a row, 0 or -inf (heads_per_call, block_size, n_keys).

        The diagonal block is in the middle, with as many blocks on either side as a row can have: `causal_mask` cuts
        out the part that has the diagonal block in the right slot.
        """
        size = self.problem.block_size
        side = (self.schedule.n_slots - 1) * size
        mask = torch.zeros(self.heads_per_call, size, side + size + side, dtype=self.dtype, device="cpu")
        hidden = torch.ones(size, size, dtype=torch.bool, device="cpu").triu_(1)
        mask[:, :, side : side + size].masked_fill_(hidden, -torch.inf)
        return mask

    def rows(self, batch: int) -> Iterator[Row]:
        """Gather the rows of a batch element one by one; rows without blocks are skipped."""
        p = self.problem
        k_in_place, v_in_place = (x[batch].transpose(0, 1).unsqueeze(0) for x in (p.k, p.v))
        k_slots, v_slots = self.k.unbind(), self.v.unbind()
        k_blocks, v_blocks = (torch.split(x[batch], p.block_size) for x in (p.k, p.v))
        hidden = None if self.hidden is None else HiddenSlots(self, batch)
        views: dict[int, tuple[Tensor, Tensor]] = {}
        for number, blocks, copies, is_in_place, diagonal in self.schedule.steps:
            n = len(blocks)
            mask = self.causal_mask(number, n, diagonal)
            if is_in_place:
                keys = slice(blocks[0] * p.block_size, (blocks[-1] + 1) * p.block_size)
                yield Row(number, blocks, k_in_place[:, :, keys], v_in_place[:, :, keys], mask)
                continue
            for slot, block in copies:
                if hidden is None:
                    k_slots[slot].copy_(k_blocks[block])
                    v_slots[slot].copy_(v_blocks[block])
                else:
                    hidden.fill(
                        slot, block, (k_slots[slot], k_blocks[block]), (v_slots[slot], v_blocks[block])
                    )
            if n not in views:
                views[n] = self.first_slots(self.k, n), self.first_slots(self.v, n)
            if hidden is not None:
                mask = hidden.add_to(mask, blocks)
            yield Row(number, blocks, *views[n], mask)

    def first_slots(self, x: Tensor, n: int) -> Tensor:
        """The first n slots of k or v, (1, num_kv_heads, n * block_size, dim)."""
        return x[:n].flatten(0, 1).transpose(0, 1).unsqueeze(0)

    def causal_mask(self, number: int, n: int, slot: int) -> Tensor | None:
        """Causal mask of a row with n blocks and the diagonal one in `slot` (n: none).

        0 or -inf (heads_per_call * height, n * block_size); None if every query sees all keys.
        """
        size, lead = self.problem.block_size, self.schedule.leads[number]
        if self.wide_mask is None or slot >= n or lead + 1 == size:
            return None
        first = (self.schedule.n_slots - 1 - slot) * size
        mask = self.wide_mask[:, lead : lead + self.schedule.heights[number], first : first + n * size]
        return mask.flatten(0, 1)


class HiddenSlots:
    """Which keys in the slots are padding or past the end of the sequence."""

    def __init__(self, slots: BlockSlots, batch: int) -> None:
        assert slots.hidden is not None
        self.hidden = slots.hidden[batch]  # (n_cols, block_size)
        self.is_hidden = self.hidden.any(-1).tolist()
        self.mask = torch.zeros(slots.schedule.n_slots, self.hidden.shape[1], dtype=slots.dtype, device="cpu")

    def fill(self, slot: int, block: int, *copies: tuple[Tensor, Tensor]) -> None:
        """Copy (target, source) of k and v of a block to a slot, with zeros for the hidden keys."""
        hidden = self.hidden[block]
        for target, source in copies:
            target[: source.shape[0]].copy_(source)
            if self.is_hidden[block]:  # memory past the end may hold NaN, and 0 * NaN is NaN
                target.masked_fill_(hidden[:, None, None], 0.0)
        self.mask[slot].zero_().masked_fill_(hidden, -torch.inf)

    def add_to(self, mask: Tensor | None, blocks: list[int]) -> Tensor | None:
        """Add -inf to the mask for the hidden keys of the blocks, which are in the first slots."""
        if not any(self.is_hidden[block] for block in blocks):
            return mask
        hidden = self.mask[: len(blocks)].view(1, -1)
        return hidden if mask is None else mask + hidden


def heads_per_call(problem: AttentionProblem) -> int:
    """Query heads of a group that one kernel call computes."""
    p = problem
    group = p.num_heads // p.num_kv_heads
    limit = max(1, MAX_QUERIES // min(p.q_len, p.block_size))
    return max(n for n in range(1, min(group, limit) + 1) if group % n == 0)


class QueryRows:
    """A (batch, num_heads, q_len, ...) tensor, split into rows and, if groups are large, into parts of the heads."""

    def __init__(self, x: Tensor, slots: BlockSlots) -> None:
        self.heights, self.heads_per_call = slots.schedule.heights, slots.heads_per_call
        self.by_group = x.unflatten(1, (slots.problem.num_kv_heads, -1))

    def split(self, batch: int) -> list[tuple[Tensor, ...]]:
        """Views of the parts of every row.

        (1, num_kv_heads, height, ...) each, or (1, num_kv_heads, heads_per_call, height, ...) with several heads.
        """
        x = self.by_group[batch].unsqueeze(0)
        if self.heads_per_call == 1:
            parts, tokens = x.unbind(2), 2
        else:
            parts, tokens = torch.split(x, self.heads_per_call, 2), 3
        return list(zip(*(torch.split(part, self.heights, tokens) for part in parts), strict=True))

    def read(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """A part in the shape of the kernel: (1, num_kv_heads, heads_per_call * height, ...)."""
        if self.heads_per_call > 1:
            part = part.flatten(2, 3)
        return part if part.dtype == dtype else part.to(dtype)

    def write(self, part: Tensor, values: Tensor) -> None:
        """Copy values in the shape of the kernel to a part."""
        part.copy_(values if self.heads_per_call == 1 else values.unflatten(2, part.shape[2:4]))


def by_head(x: Tensor) -> Tensor:
    """(batch, tokens, heads, dim) -> (batch, heads, tokens, dim), copied if the kernel cannot read the strides."""
    if x.stride(3) != 1 or x.stride(1) < x.shape[3]:
        x = x.contiguous()
    return x.transpose(1, 2)


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p = problem
    wide = torch.promote_types(p.q.dtype, torch.float32)
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 else wide
    slots = BlockSlots(p, dtype, buffers)
    out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device="cpu")
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=wide, device="cpu")
    if not slots.schedule.every_row_has_blocks:
        out.zero_()
        lse.fill_(-torch.inf)
    q_rows, out_rows, lse_rows = (QueryRows(x, slots) for x in (by_head(p.q), out.transpose(1, 2), lse))
    for batch in range(p.batch):
        q_of, out_of, lse_of = (x.split(batch) for x in (q_rows, out_rows, lse_rows))
        for number, _, k, v, mask in slots.rows(batch):
            for q, to_out, to_lse in zip(q_of[number], out_of[number], lse_of[number], strict=True):
                row_out, row_lse = fused_kernel.attention(q_rows.read(q, dtype), k, v, mask, p.softmax_scale)
                if mask is not None and slots.hidden is not None:
                    sees_none = (mask == -torch.inf).all(-1)
                    row_lse = row_lse.masked_fill(sees_none, -torch.inf)
                out_rows.write(to_out, row_out)
                lse_rows.write(to_lse, row_lse)
    return out, lse


def backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, buffers: Buffers
) -> Gradients:
    p, dtype = problem, lse.dtype
    sees_none = lse == -torch.inf
    if bool(sees_none.any()):  # such a query contributes nothing, whatever its gradient
        lse = lse.masked_fill(sees_none, 0.0)
        grad_out = grad_out.masked_fill(sees_none.transpose(1, 2).unsqueeze(-1), 0.0)
    slots = BlockSlots(p, dtype, buffers)
    grad_q = torch.empty(p.q.shape, dtype=p.q.dtype, device="cpu")
    if not slots.schedule.every_row_has_blocks:
        grad_q.zero_()
    grad_k, grad_v = (
        torch.zeros(p.batch, p.n_cols, p.block_size, *x.shape[2:], dtype=dtype, device="cpu")
        for x in (p.k, p.v)
    )
    read = [QueryRows(x, slots) for x in (by_head(grad_out), by_head(p.q), by_head(out), lse)]
    written = QueryRows(grad_q.transpose(1, 2), slots)
    for batch in range(p.batch):
        d_out_of, q_of, out_of, lse_of = (x.split(batch) for x in read)
        grad_q_of = written.split(batch)
        totals = [x[batch].flatten(1) for x in (grad_k, grad_v)]
        for row in slots.rows(batch):
            number, pieces = row.number, row.pieces()
            indices = [torch.tensor(piece.blocks, dtype=torch.int64, device="cpu") for piece in pieces]
            inputs = (d_out_of[number], q_of[number], out_of[number], lse_of[number], grad_q_of[number])
            for *of_row, to_grad_q in zip(*inputs, strict=True):
                d_out, q, row_out, row_lse = (
                    rows.read(x, dtype) for rows, x in zip(read, of_row, strict=True)
                )
                sum_q: Tensor | None = None
                for piece, index in zip(pieces, indices, strict=True):
                    d_q, d_k, d_v = fused_kernel.attention_backward(
                        d_out, q, piece.k, piece.v, row_out, row_lse, piece.mask, p.softmax_scale
                    )
                    sum_q = d_q if sum_q is None else sum_q.add_(d_q)
                    for total, values in zip(totals, (d_k, d_v), strict=True):
                        by_block = values.squeeze(0).transpose(0, 1).reshape(len(piece.blocks), -1)
                        total.index_add_(0, index, by_block)
                assert sum_q is not None
                written.write(to_grad_q, sum_q)
    grad_k, grad_v = (x.flatten(1, 2)[:, : p.kv_len] for x in (grad_k, grad_v))
    return Gradients(grad_q, grad_k.to(p.k.dtype), grad_v.to(p.v.dtype), None)
