"""CallPlan: how a small problem is computed in one kernel call, or a few, with masks that are cached with the layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from .list_cache import cached

MAX_MASK_ELEMENTS = 2**18  # of a mask without gathered keys: 1 MiB of float32
MAX_GATHERED_ELEMENTS = 2**19  # of k
# Measured on one core, in products of an element of q and one of k per microsecond: rows of 16, 32 and more queries,
# and all queries together.
RATES = {16: 7500, 32: 11000, 64: 14500}
DENSE_RATE = 17500
# Microseconds of a kernel call per row, and of a call that visits rows one by one.
ROW_US, ROW_BY_ROW_US = 25, 130
GATHER_RATE = 1500  # elements of k, and as many of v, copied per microsecond
PIECE_QUERIES = 64  # queries of a causal call that share their keys


class Piece(NamedTuple):
    """One kernel call."""

    queries: slice
    keys: slice
    mask: Tensor | None  # 0 or -inf, (n_rows, 1, group * height, n_keys); None if every query sees every key
    forward_mask: Tensor | None  # the same in the dtype of the forward


class CallPlan(NamedTuple):
    """How a problem becomes kernel calls, for all inputs of the same shapes.

    Either every row gathers as many blocks as the longest row, and the mask hides those that it does not have
    (one piece), or no key is gathered and every query gets a range of keys (all keys, or several pieces if causal).
    """

    # tokens of k to gather, int64 (n_rows * n_keys,); None: no gather, and n_rows is 1
    key_tokens: Tensor | None
    n_rows: int
    sees_none: Tensor | None  # bool (q_len,); None if every query sees a key
    pieces: tuple[Piece, ...]
    hides_blocks: bool  # the mask hides more than the future within diagonal blocks


def plan_of(problem: AttentionProblem) -> CallPlan | None:
    """The cached plan; None if another method is faster."""
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
        "one call", p.first_row, p.q_offset, p.q_len, p.kv_len, p.block_size, p.is_causal, p.batch, p.num_heads,
        p.num_kv_heads, p.head_dim, p.q.dtype,
    )  # fmt: skip
    return cached(p.rows.indices, key, lambda: make_plan(p))


def make_plan(problem: AttentionProblem) -> CallPlan | None:
    """Estimate the time of both kinds of plan and of a kernel call per row; None if the last is the shortest."""
    p, size = problem, problem.block_size
    row, columns = active_blocks(p)
    counts = torch.bincount(row, minlength=p.n_rows)
    active = torch.zeros(p.n_rows, p.n_cols, dtype=torch.bool, device="cpu")
    active[row, columns] = True
    pieces = pieces_of(p, active)
    row_by_row, padded, dense = estimated_us(p, counts, pieces)
    if row_by_row < min(padded, dense):
        return None

    position = torch.arange(p.q_len, device="cpu") + p.q_offset
    if dense < padded:
        keys = torch.arange(p.kv_len, device="cpu").view(1, 1, -1)
        visible = active[position // size - p.first_row][:, keys.flatten() // size][None]
        key_tokens, hides_blocks = None, not all(is_full(p, active, *piece) for piece in pieces)
    else:
        longest = max(1, int(counts.max()))
        pieces, hides_blocks = everything(p), bool((counts < longest).any())
        rank = torch.arange(row.numel(), device="cpu") - (counts.cumsum(0) - counts)[row]
        blocks = torch.full((p.n_rows, longest), -1, dtype=torch.int64, device="cpu")
        blocks[row, rank] = columns
        keys = (blocks[:, :, None] * size + torch.arange(size, device="cpu")).view(p.n_rows, 1, -1)
        visible = (keys >= 0) & (keys < p.kv_len)
        position = position.view(p.n_rows, size, 1)
        key_tokens = keys.clamp(0, p.kv_len - 1).flatten()
    position = position.view(keys.shape[0], -1, 1)
    if p.is_causal:
        visible = visible & (keys <= position)
    visible = visible.expand(-1, position.shape[1], -1)
    sees_none = ~visible.any(-1).flatten()
    return CallPlan(
        key_tokens,
        visible.shape[0],
        sees_none if bool(sees_none.any()) else None,
        with_masks(p, pieces, visible),
        hides_blocks,
    )


def active_blocks(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """Row and column of every active block that is not entirely in the future, int64."""
    p = problem
    offsets, columns = p.rows.indptr.long(), p.rows.indices.long()
    row = torch.arange(p.n_rows, device="cpu").repeat_interleave(offsets.diff())
    if p.is_causal:
        is_past = columns <= row + p.first_row
        row, columns = row[is_past], columns[is_past]
    return row, columns


def estimated_us(
    problem: AttentionProblem, counts: Tensor, pieces: list[tuple[slice, slice]]
) -> tuple[float, float, float]:
    """Microseconds of a kernel call per row, of rows padded to the longest, and of the pieces without a gather.

    Infinite for a plan that would take too much memory or does not apply. `counts` holds the blocks of each row.
    """
    p, size = problem, problem.block_size
    longest = max(1, int(counts.max()))
    work = size * size * p.num_heads * p.head_dim * p.batch  # of an active block
    rate = RATES[min(size, 64)]
    row_by_row = int(counts.sum()) * work / rate + (ROW_US * p.n_rows + ROW_BY_ROW_US) * p.batch
    gathered = p.n_rows * longest * size * p.num_kv_heads * p.head_dim * p.batch
    padded = p.n_rows * longest * work / rate + gathered / GATHER_RATE
    pairs = sum((queries.stop - queries.start) * (keys.stop - keys.start) for queries, keys in pieces)
    dense_rate = DENSE_RATE if len(pieces) == 1 else RATES[PIECE_QUERIES]
    dense = pairs * p.num_heads * p.head_dim * p.batch / dense_rate + ROW_US * (len(pieces) - 1)
    differ_in_height = p.q_len % size > 0 or p.q_offset % size > 0
    if differ_in_height or gathered > MAX_GATHERED_ELEMENTS:
        padded = math.inf
    if p.q_len * p.kv_len * (p.num_heads // p.num_kv_heads) > MAX_MASK_ELEMENTS:
        dense = math.inf
    return row_by_row, padded, dense


def with_masks(
    problem: AttentionProblem, pieces: list[tuple[slice, slice]], visible: Tensor
) -> tuple[Piece, ...]:
    """The pieces with their part of the mask; `visible` bool (n_rows, height, n_keys)."""
    p = problem
    forward_dtype = forward_dtype_of(p.q.dtype)
    mask: Tensor | None = None
    if not bool(visible.all()):
        dtype = torch.promote_types(p.q.dtype, torch.float32)
        mask = torch.zeros(visible.shape, dtype=dtype, device="cpu").masked_fill_(~visible, -torch.inf)
        mask = mask.repeat(1, p.num_heads // p.num_kv_heads, 1)[:, None]
    made = []
    for queries, keys in pieces:
        part = mask if mask is None or len(pieces) == 1 else mask[..., queries, keys].contiguous()
        made.append(Piece(queries, keys, part, None if part is None else part.to(forward_dtype)))
    return tuple(made)


def forward_dtype_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the forward's products: bfloat16 stays, which the kernel multiplies fast; float16 is widened."""
    return dtype if dtype == torch.bfloat16 else torch.promote_types(dtype, torch.float32)


def everything(problem: AttentionProblem) -> list[tuple[slice, slice]]:
    """One piece with all queries and all keys."""
    return [(slice(0, problem.q_len), slice(0, problem.kv_len))]


def pieces_of(problem: AttentionProblem, active: Tensor) -> list[tuple[slice, slice]]:
    """The (queries, keys) of the kernel calls if no key is gathered; `active` bool (n_rows, n_cols).

    In a causal square problem each piece gets the keys from the first to the last block that it sees.
    """
    p, size = problem, problem.block_size
    is_square = p.q_len == p.kv_len and p.q_offset == 0
    if not p.is_causal or not is_square or p.num_heads != p.num_kv_heads:
        return everything(p)
    pieces = []
    for start in range(0, p.q_len, max(size, PIECE_QUERIES)):
        stop = min(start + max(size, PIECE_QUERIES), p.q_len)
        seen = active[start // size : -(-stop // size)].any(0).nonzero().flatten()
        first, last = (int(seen[0]), int(seen[-1]) + 1) if seen.numel() else (0, 1)
        pieces.append((slice(start, stop), slice(first * size, min(last * size, p.kv_len))))
    return pieces


def is_full(problem: AttentionProblem, active: Tensor, queries: slice, keys: slice) -> bool:
    """Whether the layout keeps every block of the piece; blocks in the future count as missing."""
    size, lead = problem.block_size, problem.q_offset % problem.block_size
    rows = slice((queries.start + lead) // size, -(-(queries.stop + lead) // size))
    return bool(active[rows, keys.start // size : -(-keys.stop // size)].all())
