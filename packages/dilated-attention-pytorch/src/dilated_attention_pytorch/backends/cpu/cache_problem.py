"""A decoding call on a contiguous cache as the attention call that it stands for."""

from __future__ import annotations

import torch

from ...sequences import Sequences
from ..decode_problem import DecodeProblem
from ..problem import AttentionProblem


def attention_of(problem: DecodeProblem) -> AttentionProblem:
    """The problem of a decoding call that has no block_table."""
    p, x = problem, problem.inputs
    assert x.block_table is None
    k, v, q_offset, sequences = x.k_cache, x.v_cache, 0, None
    if p.batch == 1:  # one static position
        length = int(x.cache_lengths)
        end = min(max(length, 0), p.max_len)
        start = 0 if x.kv_starts is None else min(max(int(x.kv_starts), 0), end)
        q_offset = length - start - p.q_len
        k, v = k[:, start:end], v[:, start:end]
    else:
        ends = x.cache_lengths.clamp(0, p.max_len)
        starts = torch.zeros_like(ends) if x.kv_starts is None else x.kv_starts.clamp(min=0).minimum(ends)
        zeros = torch.zeros_like(ends)
        position = x.cache_lengths - starts - p.q_len
        table = torch.stack([zeros, zeros + p.q_len, starts, ends - starts, position], 1)
        sequences = Sequences(table, p.q_len, p.max_len)
    return AttentionProblem.made_of(
        q=x.q, k=k, v=v, grid=p.grid, layout_batch=p.layout_batch, layout_heads=p.layout_heads, rows=p.rows, cols=p.rows,
        undilated=(p.rows, p.rows), block_masks=p.block_masks, prepared=(), entries=None, q_offset=q_offset,
        is_causal=True, softmax_scale=p.softmax_scale, dropout_p=0.0, dilation=None, block_bias=None,
        key_padding_mask=None, seed=None, sequences=sequences, softcap=p.softcap, attn_bias=None,
        alibi_slopes=x.alibi_slopes, sinks=x.sinks,
    )  # fmt: skip
