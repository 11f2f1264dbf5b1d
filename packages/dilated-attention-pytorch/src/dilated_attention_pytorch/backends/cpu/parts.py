"""Parts: a call that is no plain batch, as plain problems on views of its tensors.

There is a part for every sequence, or for the batch where the sequences are alike. It has only the queries at positions
of the layout, and only the keys that these may see: what else a batch or a cache holds is never read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients, beyond_plain_batch
from . import choice, single_queries
from .call_lists import rows_of_call
from .scratch import Buffers


class Span(NamedTuple):
    """Sequences that are alike: where they are in memory, and the position of their first query."""

    first: int
    """The number of the first one; the batch element, unless they are packed."""
    n: int
    q_start: int
    q_len: int
    kv_start: int
    kv_len: int
    q_position: int

    def within(self, problem: AttentionProblem) -> Span:
        """The same, cut to the tensors: slices with a negative begin would be something else."""
        q_start, kv_start = max(self.q_start, 0), max(self.kv_start, 0)
        return self._replace(
            q_start=q_start,
            q_len=min(self.q_len, problem.q_len - q_start),
            kv_start=kv_start,
            kv_len=min(self.kv_len, problem.kv_len - kv_start),
        )


class Part(NamedTuple):
    """A plain problem, and where its tensors are in those of the call."""

    problem: AttentionProblem
    sequences: slice
    batches: slice
    queries: slice
    keys: slice


def is_plain(problem: AttentionProblem) -> bool:
    """Whether the problem is a plain batch, and its lists fill their memory."""
    p, grid = problem, problem.grid
    is_square = (p.q.shape[1], p.k.shape[1], p.q_offset) == (
        grid.q_len,
        grid.kv_len,
        0,
    ) and p.layout_batch == 1
    # the first is the common case, found in a third of the time
    if not (is_square and p.sequences is None) and beyond_plain_batch(p) is not None:
        return False
    return int(p.rows.indptr[-1]) == p.rows.indices.numel()


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """out and lse, without sinks."""
    p = problem
    if choice.fits_fused_kernel(p) and single_queries.suits(p):
        return single_queries.forward(p, buffers)
    parts = list(parts_of(p))
    if len(parts) == 1 and parts[0].problem.q.shape == p.q.shape:
        return choice.forward(parts[0].problem, buffers, parts[0].sequences.start)
    out = p.q.new_zeros(p.batch, p.q_len, p.num_heads, p.v_head_dim)
    dtype = torch.promote_types(p.q.dtype, torch.float32)
    lse = torch.full((p.batch, p.num_heads, p.q_len), -torch.inf, dtype=dtype, device="cpu")
    for part in parts:
        part_out, part_lse = choice.forward(part.problem, buffers, part.sequences.start)
        out[part.batches, part.queries] = part_out
        lse[part.batches, :, part.queries] = part_lse
    return out, lse


def backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Buffers,
) -> Gradients:
    """Gradients of all but the sinks, given out and lse with them."""
    p = problem
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype, device="cpu") for x in (p.q, p.k, p.v))
    grad_bias = None
    if p.block_bias is not None:
        grad_bias = torch.zeros(p.block_bias.shape, dtype=lse.dtype, device="cpu")
    for part in parts_of(p):
        of_queries, of_keys = (part.batches, part.queries), (part.batches, part.keys)
        by_head = (part.batches, slice(None), part.queries)
        grads = choice.backward(
            part.problem,
            out[of_queries],
            lse[by_head],
            grad_out[of_queries],
            None if grad_lse is None else grad_lse[by_head],
            buffers,
            part.sequences.start,
            None if grad_bias is None else of_sequences(grad_bias, part.sequences),
        )
        grad_q[of_queries] = grads.q
        grad_k[of_keys] = grads.k
        grad_v[of_keys] = grads.v
    return Gradients(grad_q, grad_k, grad_v, grad_bias)


def of_sequences(x: Tensor, sequences: slice) -> Tensor:
    """The part of a block bias, or of its gradient, that belongs to some sequences."""
    return x[sequences] if x.shape[0] > 1 else x


def spans_of(problem: AttentionProblem) -> Iterator[Span]:
    """The sequences of a call, neighbours that are alike together."""
    p = problem
    if p.sequences is None or (p.sequences.only_lengths and p.layout_batch == 1):
        n = p.batch if p.layout_batch == 1 else 1
        for first in range(0, max(p.batch, 1), max(n, 1)):
            yield Span(first, n, 0, p.q_len, 0, p.kv_len, p.q_offset)
        return
    span: Span | None = None
    for number, row in enumerate(p.sequences.table.tolist()):
        if span is not None and p.layout_batch == 1 and not p.sequences.is_packed and row == list(span[2:]):
            span = span._replace(n=span.n + 1)
            continue
        if span is not None:
            yield span.within(p)
        span = Span(number, 1, *row)
    if span is not None:
        yield span.within(p)


def parts_of(problem: AttentionProblem) -> Iterator[Part]:
    """The parts of a problem; those whose queries see no key are left out."""
    p, grid = problem, problem.grid
    is_packed = p.sequences is not None and p.sequences.is_packed
    for span in spans_of(p):
        # queries at positions of the layout, and keys at those that they see
        begin = max(grid.first_row * grid.block_size, 0 if p.is_causal else span.q_position, span.q_position)
        end = min((grid.first_row + grid.n_rows) * grid.block_size, span.q_position + span.q_len)
        n_keys = min(span.kv_len, grid.n_cols * grid.block_size)
        if p.is_causal:
            n_keys = min(n_keys, end)
        if begin >= end or n_keys <= 0:
            continue
        sequences = slice(span.first, span.first + span.n)
        q_start = span.q_start + begin - span.q_position
        yield part_of(
            p,
            sequences,
            slice(0, 1) if is_packed else sequences,
            slice(q_start, q_start + end - begin),
            slice(span.kv_start, span.kv_start + n_keys),
            begin,
        )


def part_of(
    problem: AttentionProblem,
    sequences: slice,
    batches: slice,
    queries: slice,
    keys: slice,
    q_position: int,
) -> Part:
    """The part of these tokens, whose first query is at `q_position`."""
    p, size = problem, problem.block_size
    first_row = q_position // size
    n_rows = -(-(q_position + queries.stop - queries.start) // size) - first_row
    rows = rows_of_call(
        p,
        sequences.start if p.layout_batch > 1 else 0,
        first_row - p.grid.first_row,
        n_rows,
        -(-(keys.stop - keys.start) // size),
    )
    attn_bias = p.attn_bias
    if attn_bias is not None:
        attn_bias = of_sequences(attn_bias, batches)[:, :, queries, keys]
    padding = p.key_padding_mask
    made = AttentionProblem.made_of(**{
        **p.__dict__,
        "q": tokens_of(p.q, batches, queries), "k": tokens_of(p.k, batches, keys), "v": tokens_of(p.v, batches, keys),
        "rows": rows, "q_offset": q_position,
        "layout_batch": 1, "sequences": p.sequences if is_masked(p) else None,
        "block_bias": None if p.block_bias is None else of_sequences(p.block_bias, sequences),
        "key_padding_mask": None if padding is None else tokens_of(padding, batches, keys),
        "attn_bias": attn_bias,
    })  # fmt: skip
    return Part(made, sequences, batches, queries, keys)


def tokens_of(x: Tensor, batches: slice, tokens: slice) -> Tensor:
    """Some tokens of some batch elements, x itself where that is all of it."""
    n_batches, n_tokens = x.shape[:2]
    if batches.stop - batches.start < n_batches:
        x = x[batches]
    return x if tokens.stop - tokens.start == n_tokens else x[:, tokens]


def is_masked(problem: AttentionProblem) -> bool:
    """Whether the lengths of the sequences become a mask, as in a plain batch, instead of parts."""
    p = problem
    return p.sequences is not None and p.sequences.only_lengths and p.layout_batch == 1
