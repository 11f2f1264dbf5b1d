"""The way of small calls: all rows in one call of the kernel, or few, with a mask that is kept with the layout.

Either every row gets as many blocks as the longest, of which the mask hides those that it does not have, or, where
that costs no less, every row gets all keys; if causal, each piece of queries those from the first to the last that it
sees. A call of the kernel in microseconds leaves no time for more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import flash
from .kept import kept
from .scratch import Buffers, Scratch

MOST_PAIRS = 2**18  # of queries and keys with a mask: 1 MiB of float32
MOST_ELEMENTS = 2**19  # of k, gathered
# Measured on one core, in products of an element of q and one of k per microsecond: rows of 16, 32 and more queries,
# and all queries together. A row of its own costs ROW, a call that walks over rows CALL.
RATES = {16: 7500, 32: 11000, 64: 14500}
DENSE_RATE, ROW, CALL = 17500, 25, 130
GATHER = 1500  # elements of k, and as many of v, copied per microsecond
PIECE = 64  # queries of a causal call that get the same keys


class Piece(NamedTuple):
    """One call of the kernel."""

    queries: slice
    keys: slice
    mask: Tensor | None  # 0 or -inf, (n_rows, 1, group * height, n_keys), if a query does not see a key
    forward_mask: Tensor | None  # the same in the dtype of the forward


class Plan(NamedTuple):
    """How a problem becomes calls of the kernel; all static."""

    keys: (
        Tensor | None
    )  # int64 (n_rows * n_keys,) token of k; None: every row gets all keys, and all rows are one
    n_rows: int
    sees_none: Tensor | None  # bool (q_len,), if there are such queries
    pieces: tuple[Piece, ...]
    hides_blocks: bool  # the mask hides more than the future in the diagonal blocks


def plan_of(problem: AttentionProblem) -> Plan | None:
    """None where another way is faster."""
    p = problem
    if (
        p.layout_heads > 1
        or p.q_len * p.kv_len > 2**22
        or p.kv_lengths is not None
        or p.key_padding_mask is not None
        or len(p.rates) > 1
        or not all(x.stride(3) == 1 and x.stride(1) >= p.head_dim for x in (p.q, p.k, p.v))
    ):
        return None
    key = (
        "small", p.first_row, p.q_offset, p.q_len, p.kv_len, p.block_size, p.is_causal, p.batch, p.num_heads,
        p.num_kv_heads, p.head_dim, p.q.dtype,
    )  # fmt: skip
    return kept(p.rows.indices, key, lambda: make_plan(p))


def make_plan(problem: AttentionProblem) -> Plan | None:
    p, size = problem, problem.block_size
    dtype = torch.promote_types(p.q.dtype, torch.float32)
    group, n_rows, n_cols = p.num_heads // p.num_kv_heads, p.n_rows, p.n_cols
    offsets, columns = p.rows.indptr.long(), p.rows.indices.long()
    row = torch.arange(n_rows, device="cpu").repeat_interleave(offsets.diff())
    if p.is_causal:
        is_past = columns <= row + p.first_row
        row, columns = row[is_past], columns[is_past]
    counts = torch.bincount(row, minlength=n_rows)
    longest = max(1, int(counts.max()))
    work = size * size * p.num_heads * p.head_dim * p.batch
    rate = RATES[min(size, 64)]
    alone = row.numel() * work / rate + (ROW * n_rows + CALL) * p.batch
    gathered = n_rows * longest * size * p.num_kv_heads * p.head_dim * p.batch
    padded = n_rows * longest * work / rate + gathered / GATHER
    active = torch.zeros(n_rows, n_cols, dtype=torch.bool, device="cpu")
    active[row, columns] = True
    pieces = pieces_of(p, active)
    pairs = sum((rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in pieces)
    dense_rate = DENSE_RATE if len(pieces) == 1 else RATES[PIECE]
    dense = pairs * p.num_heads * p.head_dim * p.batch / dense_rate + ROW * (len(pieces) - 1)
    is_cut = p.q_len % size > 0 or p.q_offset % size > 0  # rows differ in height
    if is_cut or gathered > MOST_ELEMENTS:
        padded = math.inf
    if p.q_len * p.kv_len * group > MOST_PAIRS:
        dense = math.inf
    if alone < min(padded, dense):
        return None

    position = torch.arange(p.q_len, device="cpu") + p.q_offset
    if dense < padded:
        keys = torch.arange(p.kv_len, device="cpu").view(1, 1, -1)
        visible = active[position // size - p.first_row][:, keys.flatten() // size][None]
        place, hides_blocks = None, not all(is_full(p, active, *piece) for piece in pieces)
    else:
        pieces, hides_blocks = whole(p), bool((counts < longest).any())
        rank = torch.arange(row.numel(), device="cpu") - (counts.cumsum(0) - counts)[row]
        blocks = torch.full((n_rows, longest), -1, dtype=torch.int64, device="cpu")
        blocks[row, rank] = columns
        keys = (blocks[:, :, None] * size + torch.arange(size, device="cpu")).view(n_rows, 1, -1)
        visible = (keys >= 0) & (keys < p.kv_len)
        position = position.view(n_rows, size, 1)
        place = keys.clamp(0, p.kv_len - 1).flatten()
    position = position.view(keys.shape[0], -1, 1)
    if p.is_causal:
        visible = visible & (keys <= position)
    visible = visible.expand(-1, position.shape[1], -1)
    mask = torch.zeros(visible.shape, dtype=dtype, device="cpu").masked_fill_(~visible, -torch.inf)
    sees_none = ~visible.any(-1).flatten()
    hidden = None if bool(visible.all()) else mask.repeat(1, group, 1)[:, None]
    in_forward = dtype_of_forward(p.q.dtype)
    parts = [
        hidden if hidden is None or len(pieces) == 1 else hidden[..., queries, keys].contiguous()
        for queries, keys in pieces
    ]
    return Plan(
        place,
        mask.shape[0],
        sees_none if bool(sees_none.any()) else None,
        tuple(
            Piece(queries, keys, part, None if part is None else part.to(in_forward))
            for (queries, keys), part in zip(pieces, parts, strict=True)
        ),
        hides_blocks,
    )


def dtype_of_forward(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 as it is, which the kernel multiplies in; float16 as float32."""
    return dtype if dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)


def whole(problem: AttentionProblem) -> list[tuple[slice, slice]]:
    """All queries and all keys."""
    return [(slice(0, problem.q_len), slice(0, problem.kv_len))]


def pieces_of(problem: AttentionProblem, active: Tensor) -> list[tuple[slice, slice]]:
    """The calls where no key is copied, as (queries, keys); `active` bool (n_rows, n_cols)."""
    p, size = problem, problem.block_size
    if not p.is_causal or p.q_len != p.kv_len or p.num_heads != p.num_kv_heads:
        return whole(p)
    pieces = []
    for start in range(0, p.q_len, max(size, PIECE)):
        stop = min(start + max(size, PIECE), p.q_len)
        seen = active[start // size : -(-stop // size)].any(0).nonzero().flatten()
        first, last = (int(seen[0]), int(seen[-1]) + 1) if seen.numel() else (0, 1)
        pieces.append((slice(start, stop), slice(first * size, min(last * size, p.kv_len))))
    return pieces


def is_full(problem: AttentionProblem, active: Tensor, queries: slice, keys: slice) -> bool:
    """Whether the rows see all blocks of the keys; none of the future, either, is among them."""
    size, lead = problem.block_size, problem.q_offset % problem.block_size
    rows = slice((queries.start + lead) // size, -(-(queries.stop + lead) // size))
    return bool(active[rows, keys.start // size : -(-keys.stop // size)].all())


class Tiled:
    """The problem's tensors as the plan's one call takes them."""

    def __init__(self, problem: AttentionProblem, plan: Plan, dtype: torch.dtype, buffers: Buffers) -> None:
        p = self.problem = problem
        self.plan, self.dtype = plan, dtype
        self.scratch = Scratch(dtype, buffers)
        self.n_rows = plan.n_rows
        self.keys = plan.keys
        if self.keys is not None and p.batch > 1:
            starts = torch.arange(0, p.batch * p.kv_len, p.kv_len, device="cpu")
            self.keys = (starts[:, None] + self.keys).flatten()

    def queries(self, x: Tensor) -> Tensor:
        """(batch, q_len, num_heads, ...) as (batch * n_rows, num_kv_heads, group * height, ...)."""
        p = self.problem
        x = x.unflatten(1, (self.n_rows, -1)).flatten(0, 1).to(self.dtype)
        if p.num_heads == p.num_kv_heads:
            return x.transpose(1, 2)
        by_head: Tensor = x.unflatten(2, (p.num_kv_heads, -1)).movedim(1, 3).flatten(2, 3)
        return by_head

    def by_token(self, x: Tensor) -> Tensor:
        """The inverse of `queries`."""
        p = self.problem
        group = p.num_heads // p.num_kv_heads
        x = (
            x.unflatten(2, (group, -1)).movedim(3, 1).flatten(2, 3)
        )  # (batch * n_rows, height, num_heads, ...)
        by_token: Tensor = x.reshape(p.batch, p.q_len, p.num_heads, *x.shape[3:])
        return by_token

    def keys_of(self, name: str, x: Tensor) -> Tensor:
        """(batch, kv_len, num_kv_heads, dim) as (batch * n_rows, num_kv_heads, n_keys, dim)."""
        p = self.problem
        if self.keys is None:
            return x.to(self.dtype).transpose(1, 2)
        rows = self.scratch.gather(name, x.flatten(0, 1).flatten(1), self.keys)
        return rows.view(p.batch * self.n_rows, -1, *x.shape[2:]).transpose(1, 2)

    def of_batch(self, mask: Tensor | None) -> Tensor | None:
        """The mask for the rows of all batch elements."""
        if mask is None or self.problem.batch == 1 or self.n_rows == 1:
            return mask
        return mask.repeat(self.problem.batch, 1, 1, 1)

    def sum_of_keys(self, x: Tensor, like: Tensor) -> Tensor:
        """The gradient of k or v, of that of `keys_of`."""
        if self.keys is None:
            return x.transpose(1, 2).to(like.dtype).contiguous()
        total = torch.zeros(like.shape, dtype=self.dtype, device="cpu")
        rows = x.transpose(1, 2).reshape(self.keys.numel(), -1)
        total.flatten(0, 1).flatten(1).index_add_(0, self.keys, rows)
        return total.to(like.dtype)


def forward(problem: AttentionProblem, plan: Plan, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p = problem
    tiled = Tiled(p, plan, dtype_of_forward(p.q.dtype), buffers)
    q, k, v = tiled.queries(p.q), tiled.keys_of("k", p.k), tiled.keys_of("v", p.v)
    if len(plan.pieces) == 1:
        out, lse = flash.attention(q, k, v, tiled.of_batch(plan.pieces[0].forward_mask), p.softmax_scale)
        out, lse = tiled.by_token(out), tiled.by_token(lse).transpose(1, 2).contiguous()
    else:
        parts = [
            flash.attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask, p.softmax_scale)
            for queries, keys, _, mask in plan.pieces
        ]
        out = torch.cat([part.transpose(1, 2) for part, _ in parts], 1)
        lse = torch.cat([part for _, part in parts], 2)
    if plan.sees_none is not None:
        lse.masked_fill_(plan.sees_none, -torch.inf)
    return out.to(p.q.dtype), lse


def backward(
    problem: AttentionProblem, plan: Plan, out: Tensor, lse: Tensor, grad_out: Tensor, buffers: Buffers
) -> Gradients:
    p = problem
    if plan.sees_none is not None:  # nothing comes of such a query, whatever gradient arrives
        lse = lse.masked_fill(plan.sees_none, 0.0)
        grad_out = grad_out.masked_fill(plan.sees_none[:, None, None], 0.0)
    tiled = Tiled(p, plan, lse.dtype, buffers)
    d_out, q, out, lse = (tiled.queries(x) for x in (grad_out, p.q, out, lse.transpose(1, 2)))
    k, v = tiled.keys_of("k", p.k), tiled.keys_of("v", p.v)
    if len(plan.pieces) == 1:
        mask = tiled.of_batch(plan.pieces[0].mask)
        grad_q, grad_k, grad_v = flash.attention_backward(d_out, q, k, v, out, lse, mask, p.softmax_scale)
    else:
        grad_k, grad_v, parts = torch.zeros_like(k), torch.zeros_like(v), []
        for queries, keys, mask, _ in plan.pieces:
            part, part_k, part_v = flash.attention_backward(
                d_out[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                mask,
                p.softmax_scale,
            )
            parts.append(part)
            grad_k[:, :, keys] += part_k
            grad_v[:, :, keys] += part_v
        grad_q = torch.cat(parts, 2)
    return Gradients(
        tiled.by_token(grad_q).to(p.q.dtype),
        tiled.sum_of_keys(grad_k, p.k),
        tiled.sum_of_keys(grad_v, p.v),
        None,
    )
