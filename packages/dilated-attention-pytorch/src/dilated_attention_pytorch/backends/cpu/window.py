"""The way of long calls: row by row, with a window of gathered blocks that moves down the layout.

Many rows share most of their blocks. The window holds the blocks of one row, in any order; for the next row, one that
shares much with it, only those that it does not hold yet are copied, over blocks that are no longer wanted. Blocks that
follow each other in memory anyway are not copied at all. Queries, outputs and their gradients are read and written where they are.

A row costs a call of the kernel. What is sliced for it is sliced for all rows at once, by `split`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import flash
from .kept import kept
from .padding import hidden_keys
from .scratch import Buffers, Scratch

MOST_QUERIES = 256  # of the heads of a group together; the kernel is not faster with more
KEPT_BLOCKS = 2**16  # lists of no more keep their schedule
ROWS_TOGETHER = 64  # of which the next is chosen
MOST_ELEMENTS = 2**17  # of k in a call of the backward: it is slower where its gradients leave the cache


class Row(NamedTuple):
    """A layout row whose blocks have been gathered."""

    number: int
    blocks: list[int]  # n of them, in the order of their keys in k and v
    k: Tensor  # (1, num_kv_heads, n * block_size, head_dim)
    v: Tensor
    mask: Tensor | None  # 0 or -inf, (1 or queries, n * block_size)

    def pieces(self) -> list[Row]:
        """The same keys in rows of nearly equal numbers of blocks, none of more than MOST_ELEMENTS and one block."""
        n = len(self.blocks)
        size = self.k.shape[2] // n
        n_pieces = min(n, -(-self.k.numel() // MOST_ELEMENTS))
        pieces = []
        for start, end in itertools.pairwise(n * i // n_pieces for i in range(n_pieces + 1)):
            keys = slice(start * size, end * size)
            mask = None if self.mask is None else self.mask[:, keys]
            pieces.append(
                Row(self.number, self.blocks[start:end], self.k[:, :, keys], self.v[:, :, keys], mask)
            )
        return pieces


class Step(NamedTuple):
    """What a row needs of the window."""

    number: int
    blocks: list[int]  # in the order of their slots, the first n
    copies: list[tuple[int, int]]  # (slot, block) of those that the window does not hold yet
    is_in_place: bool  # the blocks follow each other in memory, and no slot is used
    diagonal: int  # place of the diagonal block among them; n if it is not there


class Schedule:
    """Where the rows of a problem begin and end, and how the window moves over them."""

    def __init__(self, problem: AttentionProblem, n_readable: int, is_kept: bool) -> None:
        p = problem
        n_classes = len(p.rates)
        offsets, columns = p.rows.indptr[::n_classes].tolist(), p.rows.indices.tolist()
        rows = [columns[start:end] for start, end in itertools.pairwise(offsets)]
        if n_classes > 1:  # the classes of a row follow each other
            rows = [sorted(blocks) for blocks in rows]
        if p.is_causal:
            rows = [
                [block for block in blocks if block <= p.first_row + row] for row, blocks in enumerate(rows)
            ]
        first = min(p.block_size - (p.q_offset - p.first_row * p.block_size), p.q_len)
        inner, last = divmod(p.q_len - first, p.block_size)
        self.heights = [first, *[p.block_size] * inner, *[last] * (last > 0)]
        self.leads = [(p.q_offset - p.first_row * p.block_size), *[0] * (len(self.heights) - 1)]
        self.n_slots = max(len(blocks) for blocks in rows)
        self.all_see = all(rows)
        in_place, copied = [], []
        for number, blocks in enumerate(rows):
            if not blocks:
                continue
            if blocks[-1] < n_readable and blocks[-1] - blocks[0] == len(blocks) - 1:
                diagonal = min(p.first_row + number - blocks[0], len(blocks))
                in_place.append(Step(number, blocks, [], True, diagonal))
            else:
                copied.append(number)
        if is_kept:
            copied = order_by_sharing(rows, copied)
        self.steps = in_place + steps_of(rows, copied, p.first_row)


def order_by_sharing(rows: list[list[int]], numbers: list[int]) -> list[int]:
    """The numbers of rows so that each shares many blocks with the one before, among ROWS_TOGETHER at a time."""
    ordered: list[int] = []
    held: set[int] = set()
    for start in range(0, len(numbers), ROWS_TOGETHER):
        rest = {number: set(rows[number]) for number in numbers[start : start + ROWS_TOGETHER]}
        while rest:
            number = max(rest, key=lambda number: len(held & rest[number]))
            held = rest.pop(number)
            ordered.append(number)
    return ordered


def steps_of(rows: list[list[int]], numbers: list[int], first_row: int) -> list[Step]:
    """The window moved to one row after the other: what is missing goes over what is no longer wanted."""
    steps = []
    slots: dict[int, int] = {}  # the block in every slot
    place: dict[int, int] = {}  # the slot of every block
    for number in numbers:
        blocks = rows[number]
        n = len(blocks)
        wanted = set(blocks)
        missing = [block for block in blocks if place.get(block, n) >= n]
        copies = []
        for slot in range(n):
            old = slots.get(slot, -1)
            if place.get(old) == slot:
                if old in wanted:
                    continue
                del place[old]
            block = missing.pop()
            slots[slot], place[block] = block, slot
            copies.append((slot, block))
        of_slots = [slots[slot] for slot in range(n)]
        steps.append(Step(number, of_slots, copies, False, place.get(first_row + number, n)))
    return steps


def schedule_of(problem: AttentionProblem, n_readable: int) -> Schedule:
    """The schedule of a problem; kept as long as its lists if they are short."""
    p = problem
    if p.rows.indices.numel() > KEPT_BLOCKS:
        return Schedule(p, n_readable, is_kept=False)
    key = (
        "window", p.first_row, p.q_offset, p.q_len, p.block_size, len(p.rates), p.is_causal, n_readable,
    )  # fmt: skip
    return kept(p.rows.indices, key, lambda: Schedule(p, n_readable, is_kept=True))


class Window:
    """The gathered blocks of k and v, and the mask of the keys in them."""

    def __init__(self, problem: AttentionProblem, dtype: torch.dtype, buffers: Buffers) -> None:
        p = self.problem = problem
        self.dtype = dtype
        # Blocks before this one can be read where they are.
        is_readable = p.kv_lengths is None and p.key_padding_mask is None and p.k.dtype == dtype
        is_readable = is_readable and all(x.stride(3) == 1 and x.stride(1) >= x.shape[3] for x in (p.k, p.v))
        self.rows = schedule_of(p, p.kv_len // p.block_size if is_readable else 0)
        self.together = heads_together(p)
        shape = (self.rows.n_slots, p.block_size, p.num_kv_heads)
        scratch = Scratch(dtype, buffers)
        self.k, self.v = (scratch.take(name, *shape, x.shape[3]) for name, x in (("k", p.k), ("v", p.v)))
        self.hidden = hidden_keys(p)  # bool (batch, n_cols, block_size)
        self.triangle = self.make_triangle() if p.is_causal else None

    def make_triangle(self) -> Tensor:
        """0 or -inf (together, block_size, n): a diagonal block between as many blocks as it may have on either side."""
        size = self.problem.block_size
        side = (self.rows.n_slots - 1) * size
        mask = torch.zeros(self.together, size, side + size + side, dtype=self.dtype, device="cpu")
        hidden = torch.ones(size, size, dtype=torch.bool, device="cpu").triu_(1)
        mask[:, :, side : side + size].masked_fill_(hidden, -torch.inf)
        return mask

    def move(self, batch: int) -> Iterator[Row]:
        """The rows of a batch element that have blocks, the window moved to each in turn."""
        p = self.problem
        k_in_place, v_in_place = (x[batch].transpose(0, 1).unsqueeze(0) for x in (p.k, p.v))
        k_slots, v_slots = self.k.unbind(), self.v.unbind()
        k_blocks, v_blocks = (torch.split(x[batch], p.block_size) for x in (p.k, p.v))
        hidden = None if self.hidden is None else HiddenSlots(self, batch)
        views: dict[int, tuple[Tensor, Tensor]] = {}
        for number, blocks, copies, is_in_place, diagonal in self.rows.steps:
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
                views[n] = self.first(self.k, n), self.first(self.v, n)
            if hidden is not None:
                mask = hidden.add_to(mask, blocks)
            yield Row(number, blocks, *views[n], mask)

    def first(self, x: Tensor, n: int) -> Tensor:
        """n slots of the window's k or v as the kernel takes them."""
        return x[:n].flatten(0, 1).transpose(0, 1).unsqueeze(0)

    def causal_mask(self, number: int, n: int, slot: int) -> Tensor | None:
        """0 or -inf (together * height, n * block_size), with the diagonal block in a slot, if it is below n."""
        size, lead = self.problem.block_size, self.rows.leads[number]
        if self.triangle is None or slot >= n or lead + 1 == size:
            return None  # every query sees all keys
        first = (self.rows.n_slots - 1 - slot) * size
        mask = self.triangle[:, lead : lead + self.rows.heights[number], first : first + n * size]
        return mask.flatten(0, 1)


class HiddenSlots:
    """Which keys in the slots of a window are padding, or behind the last one."""

    def __init__(self, window: Window, batch: int) -> None:
        assert window.hidden is not None
        self.hidden = window.hidden[batch]  # (n_cols, block_size)
        self.is_hidden = self.hidden.any(-1).tolist()
        self.mask = torch.zeros(window.rows.n_slots, self.hidden.shape[1], dtype=window.dtype, device="cpu")

    def fill(self, slot: int, block: int, *copies: tuple[Tensor, Tensor]) -> None:
        """Copy each block into its slot, zeros for the keys that are hidden."""
        hidden = self.hidden[block]
        for target, source in copies:
            target[: source.shape[0]].copy_(source)
            if self.is_hidden[block]:  # memory behind the end may hold anything, and 0 * NaN is NaN
                target.masked_fill_(hidden[:, None, None], 0.0)
        self.mask[slot].zero_().masked_fill_(hidden, -torch.inf)

    def add_to(self, mask: Tensor | None, slots: list[int]) -> Tensor | None:
        """The mask, with -inf for the hidden keys of the first slots, which hold these blocks."""
        if not any(self.is_hidden[block] for block in slots):
            return mask
        hidden = self.mask[: len(slots)].view(1, -1)
        return hidden if mask is None else mask + hidden


def heads_together(problem: AttentionProblem) -> int:
    """Query heads of a group that are computed together."""
    p = problem
    group = p.num_heads // p.num_kv_heads
    most = max(1, MOST_QUERIES // min(p.q_len, p.block_size))
    return max(n for n in range(1, min(group, most) + 1) if group % n == 0)


class QueryRows:
    """A (batch, num_heads, q_len, ...) tensor, cut into its rows and, where groups are large, into parts of the heads."""

    def __init__(self, x: Tensor, window: Window) -> None:
        self.heights, self.together = window.rows.heights, window.together
        self.by_group = x.unflatten(1, (window.problem.num_kv_heads, -1))

    def of(self, batch: int) -> list[tuple[Tensor, ...]]:
        """For every row views of the parts: (1, num_kv_heads, height, ...) or, of several heads together,
        (1, num_kv_heads, together, height, ...)."""
        x = self.by_group[batch].unsqueeze(0)
        if self.together == 1:
            parts, tokens = x.unbind(2), 2
        else:
            parts, tokens = torch.split(x, self.together, 2), 3
        return list(zip(*(torch.split(part, self.heights, tokens) for part in parts), strict=True))

    def read(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """A part as the kernel takes it: (1, num_kv_heads, together * height, ...)."""
        if self.together > 1:
            part = part.flatten(2, 3)
        return part if part.dtype == dtype else part.to(dtype)

    def write(self, part: Tensor, values: Tensor) -> None:
        """Values as the kernel returns them into a part."""
        part.copy_(values if self.together == 1 else values.unflatten(2, part.shape[2:4]))


def by_head(x: Tensor) -> Tensor:
    """(batch, heads, tokens, dim) of (batch, tokens, heads, dim), in strides that the kernel can read."""
    if x.stride(3) != 1 or x.stride(1) < x.shape[3]:
        x = x.contiguous()
    return x.transpose(1, 2)


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p = problem
    wide = torch.promote_types(p.q.dtype, torch.float32)
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 else wide
    window = Window(p, dtype, buffers)
    out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device="cpu")
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=wide, device="cpu")
    if not window.rows.all_see:
        out.zero_()
        lse.fill_(-torch.inf)
    q_rows, out_rows, lse_rows = (QueryRows(x, window) for x in (by_head(p.q), out.transpose(1, 2), lse))
    for batch in range(p.batch):
        q_of, out_of, lse_of = (x.of(batch) for x in (q_rows, out_rows, lse_rows))
        for number, _, k, v, mask in window.move(batch):
            for q, to_out, to_lse in zip(q_of[number], out_of[number], lse_of[number], strict=True):
                row_out, row_lse = flash.attention(q_rows.read(q, dtype), k, v, mask, p.softmax_scale)
                if mask is not None and window.hidden is not None:
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
    if bool(sees_none.any()):  # nothing comes of such a query, whatever gradient arrives
        lse = lse.masked_fill(sees_none, 0.0)
        grad_out = grad_out.masked_fill(sees_none.transpose(1, 2).unsqueeze(-1), 0.0)
    window = Window(p, dtype, buffers)
    grad_q = torch.empty(p.q.shape, dtype=p.q.dtype, device="cpu")
    if not window.rows.all_see:
        grad_q.zero_()
    grad_k, grad_v = (
        torch.zeros(p.batch, p.n_cols, p.block_size, *x.shape[2:], dtype=dtype, device="cpu")
        for x in (p.k, p.v)
    )
    read = [QueryRows(x, window) for x in (by_head(grad_out), by_head(p.q), by_head(out), lse)]
    written = QueryRows(grad_q.transpose(1, 2), window)
    for batch in range(p.batch):
        d_out_of, q_of, out_of, lse_of = (x.of(batch) for x in read)
        grad_q_of = written.of(batch)
        totals = [x[batch].flatten(1) for x in (grad_k, grad_v)]
        for row in window.move(batch):
            number, pieces = row.number, row.pieces()
            places = [torch.tensor(piece.blocks, dtype=torch.int64, device="cpu") for piece in pieces]
            inputs = (d_out_of[number], q_of[number], out_of[number], lse_of[number], grad_q_of[number])
            for *of_row, to_grad_q in zip(*inputs, strict=True):
                d_out, q, row_out, row_lse = (
                    rows.read(x, dtype) for rows, x in zip(read, of_row, strict=True)
                )
                sum_q: Tensor | None = None
                for piece, place in zip(pieces, places, strict=True):
                    d_q, d_k, d_v = flash.attention_backward(
                        d_out, q, piece.k, piece.v, row_out, row_lse, piece.mask, p.softmax_scale
                    )
                    sum_q = d_q if sum_q is None else sum_q.add_(d_q)
                    for total, values in zip(totals, (d_k, d_v), strict=True):
                        by_block = values.squeeze(0).transpose(0, 1).reshape(len(piece.blocks), -1)
                        total.index_add_(0, place, by_block)
                assert sum_q is not None
                written.write(to_grad_q, sum_q)
    grad_k, grad_v = (x.flatten(1, 2)[:, : p.kv_len] for x in (grad_k, grad_v))
    return Gradients(grad_q, grad_k.to(p.k.dtype), grad_v.to(p.v.dtype), None)
