"""Forward kernel: one program computes one tile of queries of one head.

Online softmax over the active blocks of the tile's row (Dao et al., FlashAttention-2, arXiv:2307.08691):
    for every tile of keys of the row's list:   s = q k^T;  m' = max(m, s);  p = exp(s - m')
                                                acc = acc * exp(m - m') + p v;  l = l * exp(m - m') + sum(p)
    out = acc / l;  lse = m + log(l)
Blocks that every query sees whole come first, without a mask; those at an edge (diagonal, ragged end) follow, and those with
a mask of their own.
A tile gathers the keys of several small or token-dilated blocks: dropped keys are never loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masking import (
    LN2,
    LOG2E,
    allowed_in_tile,
    allowed_pairs,
    count_below,
    dropout_keep,
    edge_end,
    entry_of,
    gathered_tokens,
    not_padded,
    past_visible,
    valid_keys,
    whole_and_visible,
)
from .parts import (
    UNSPECIALISED,
    BlockBias,
    Blocks,
    Dropout,
    KeyPadding,
    Keys,
    Options,
    PairBias,
    Pairs,
    Queries,
    Scores,
    Sizes,
    Sums,
)
from .scores import added, block_bias, block_biases, tanh
from .sequences import block_of, first_list_of, in_elements, sequence_of


@triton.jit
def softmax_step(q, k, v, sums, pairs, dropout, scores, MASKED: tl.constexpr, sizes, options):
    """Add one tile of keys; scores are kept in units of log2."""
    s = tl.dot(q, k, input_precision=options.PRECISION)
    ADDED: tl.constexpr = options.HAS_BIAS or (scores.slope_log2 is not None or scores.attn_bias is not None)
    if scores.cap_log2 is not None:
        s = tanh(s * scores.scale_over_cap, scores.EXACT_TANH)
    factor = scores.scale_log2 if scores.cap_log2 is None else scores.cap_log2
    if MASKED or ADDED:
        s = s * factor
        if ADDED:
            s = added(s, pairs, scores, options.HAS_BIAS)
        if MASKED:
            s = tl.where(pairs.visible, s, float("-inf"))
        m_new = tl.maximum(sums.m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # a query that has seen no key yet
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(sums.m - m_safe)
    else:
        IS_POSITIVE: tl.constexpr = options.SCALE_POSITIVE or scores.cap_log2 is not None
        m_new = tl.maximum(sums.m, (tl.max(s, 1) if IS_POSITIVE else tl.min(s, 1)) * factor)
        p = tl.exp2(s * factor - m_new[:, None])
        alpha = tl.exp2(sums.m - m_new)
    l = sums.l * alpha + tl.sum(p, 1)
    if options.DROPOUT:
        keep = dropout_keep(dropout, pairs.key, pairs.position, sizes.BLOCK_M, sizes.BLOCK_N)
        p = tl.where(keep, p * dropout.keep_scale, 0.0)
    acc = sums.acc * alpha[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=options.PRECISION)
    return acc, m_new, l


@triton.jit
def masked_step(q, sums, queries, keys, key, n_in, allowed, bias, dropout, scores, sizes, options):
    """Add one tile of keys, those of `n_in`, of which a query may see a part: what is `allowed` (None: all)."""
    d, dv = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV)
    visible = (
        n_in[None, :] & (key[None, :] <= queries.position[:, None]) if options.IS_CAUSAL else n_in[None, :]
    )
    if allowed is not None:
        visible = visible & allowed
    k_mask = n_in[None, :] & (d < sizes.HEAD_DIM)[:, None]
    v_mask = n_in[:, None] & (dv < sizes.V_HEAD_DIM)[None, :]
    key64 = key.to(tl.int64)
    k_ptrs = keys.k_base + key64[None, :] * keys.stride_ks + d[:, None]
    k = tl.load(k_ptrs, mask=k_mask, other=0.0)
    v_ptrs = keys.v_base + key64[:, None] * keys.stride_vs + dv[None, :]
    v = tl.load(v_ptrs, mask=v_mask, other=0.0)
    return softmax_step(
        q, k, v, sums,
        Pairs(
            key[None, :], queries.position[:, None], queries.query[:, None], n_in[None, :] & queries.m_in[:, None], visible, bias
        ),
        dropout, scores, True, sizes, options,
    )  # fmt: skip


@triton.jit
def attend_class(
    q, sums, queries, blocks, keys, bias_of, padding, dropout, scores, RATE: tl.constexpr, sizes, options
):
    """Add the keys of one distance class of the row's list to the sums."""
    BLOCK_SIZE: tl.constexpr = sizes.BLOCK_SIZE
    BLOCK_N: tl.constexpr = sizes.BLOCK_N
    Indices, lo, hi = blocks.Indices, blocks.lo, blocks.hi
    acc, m, l = sums.acc, sums.m, sums.l
    d, dv, n = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV), tl.arange(0, BLOCK_N)
    k_offsets = n[None, :] * keys.stride_ks + d[:, None]  # (BLOCK_D, BLOCK_N): k transposed
    v_offsets = n[:, None] * keys.stride_vs + dv[None, :]
    if RATE == 1 and BLOCK_SIZE >= BLOCK_N:
        TILES_N: tl.constexpr = BLOCK_SIZE // BLOCK_N
        n_whole, n_visible = whole_and_visible(blocks, queries.position0, keys, sizes, options)
        for t in tl.range(0, n_whole * TILES_N):
            entry = lo + t // TILES_N
            key0 = tl.load(Indices + entry) * BLOCK_SIZE + (t % TILES_N) * BLOCK_N
            k_tile = keys.k_base + key0.to(tl.int64) * keys.stride_ks
            v_tile = keys.v_base + key0.to(tl.int64) * keys.stride_vs
            if sizes.HEAD_DIM == sizes.BLOCK_D:
                k = tl.load(k_tile + k_offsets)
            else:
                k = tl.load(k_tile + k_offsets, mask=(d < sizes.HEAD_DIM)[:, None], other=0.0)
            if sizes.V_HEAD_DIM == sizes.BLOCK_DV:
                v = tl.load(v_tile + v_offsets)
            else:
                v = tl.load(v_tile + v_offsets, mask=(dv < sizes.V_HEAD_DIM)[None, :], other=0.0)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_bias(bias_of, blocks.Entries, entry)
            acc, m, l = softmax_step(
                q, k, v, Sums(acc, m, l),
                Pairs((key0 + n)[None, :], queries.position[:, None], queries.query[:, None], queries.m_in[:, None], True, bias),
                dropout, scores, False, sizes, options,
            )  # fmt: skip
        end = edge_end(blocks, n_visible, queries.position0, keys.kv_valid, sizes, options)
        for t in tl.range(n_whole * TILES_N, end * TILES_N, num_stages=1):
            entry = entry_of(blocks, t // TILES_N, n_visible)
            key = tl.load(Indices + entry) * BLOCK_SIZE + (t % TILES_N) * BLOCK_N + n
            n_in = key < keys.kv_valid
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_bias(bias_of, blocks.Entries, entry)
            if options.HAS_PADDING:
                n_in = not_padded(padding, key, n_in)
            acc, m, l = masked_step(
                q, Sums(acc, m, l), queries, keys, key, n_in,
                allowed_in_tile(
                    blocks.masks, entry, queries.position & (BLOCK_SIZE - 1), (t % TILES_N) * BLOCK_N, BLOCK_SIZE, BLOCK_N, False
                ) if blocks.masks is not None else None,
                bias, dropout, scores, sizes, options,
            )  # fmt: skip
    else:
        if keys.BEYOND and blocks.masks is None:
            past_end = past_visible(queries.position0, keys.kv_valid, sizes, options.IS_CAUSAL)
            hi = lo + count_below(Indices, lo, hi, past_end)
        # not pipelined: Triton 3.6 then reads the wrong keys for the causal mask
        for t in tl.range(0, tl.cdiv((hi - lo) * (BLOCK_SIZE // RATE), BLOCK_N), num_stages=1):
            entry, key, n_in = gathered_tokens(Indices, lo, hi, t, queries.head, RATE, BLOCK_SIZE, BLOCK_N)
            n_in = n_in & (key < keys.kv_valid)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_biases(bias_of, blocks.Entries, entry, n_in)
            if options.HAS_PADDING:
                n_in = not_padded(padding, key, n_in)
            acc, m, l = masked_step(
                q, Sums(acc, m, l), queries, keys, key, n_in,
                allowed_pairs(
                    blocks.masks, entry[None, :], (queries.position & (BLOCK_SIZE - 1))[:, None],
                    (key & (BLOCK_SIZE - 1))[None, :], n_in[None, :], BLOCK_SIZE,
                ) if blocks.masks is not None else None,
                bias, dropout, scores, sizes, options,
            )  # fmt: skip
    return acc, m, l


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    Q, K, V, Out, Lse, Offsets, Indices, Entries, Bias, KvLengths, Padding, Seed,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_vb, stride_vs, stride_vh, stride_ob, stride_os, stride_oh,
    stride_bb, stride_bh, stride_be, stride_pb, stride_ps,
    q_len, kv_len, q_offset, first_row, n_rows, num_heads, group, heads_per_list, has_edge, softmax_scale, threshold, keep_scale,
    Table, max_rows, max_cols, q_tokens, kv_tokens, q_position, first_grid_row, grid_rows, grid_cols, list_heads,
    masks, softcap, Slopes, Sinks, attn_bias,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, N_CLASSES: tl.constexpr, RATES_LOG2: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_KV_LENGTHS: tl.constexpr, HAS_PADDING: tl.constexpr,
    DROPOUT: tl.constexpr, SCALE_POSITIVE: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
    EXACT_TANH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One query tile of one head; see the top of this file. What follows `keep_scale` is None where the call has it not."""
    stride_qb, stride_qs, stride_qh = in_elements(stride_qb, stride_qs, stride_qh, UNIT)
    stride_kb, stride_ks, stride_kh = in_elements(stride_kb, stride_ks, stride_kh, UNIT)
    stride_vb, stride_vs, stride_vh = in_elements(stride_vb, stride_vs, stride_vh, UNIT)
    stride_ob, stride_os, stride_oh = in_elements(stride_ob, stride_os, stride_oh, UNIT)
    TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
    n_tiles = (n_rows if q_tokens is None else max_rows) * TILES_M
    i_tile = tl.program_id(0) % n_tiles
    sequence_head = tl.program_id(0) // n_tiles
    i_sequence, head = sequence_head // num_heads, sequence_head % num_heads
    row = i_tile // TILES_M
    if q_tokens is None:
        i_batch, batch_head = i_sequence, sequence_head
        block = first_row + row
    else:
        i_batch, q_offset, q_begin, q_end, kv_begin, kv_len = sequence_of(
            Table, q_position, q_tokens, kv_tokens, i_sequence, PACKED
        )
        batch_head = i_batch * num_heads + head
        q_len = q_tokens
        block = block_of(q_offset + q_begin if PACKED else q_offset, BLOCK_SIZE) + row
        if block * BLOCK_SIZE - q_offset >= (q_end if PACKED else q_len):
            return
    position0 = block * BLOCK_SIZE + (i_tile % TILES_M) * BLOCK_M
    position = position0 + tl.arange(0, BLOCK_M)
    query = position - q_offset
    if q_tokens is None:
        m_in = (query >= 0) & (query < q_len)
        m_store = m_in
    else:
        m_in = (query >= q_begin) & (query < q_end)
        m_store = m_in if PACKED else (query >= 0) & (query < q_len)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)

    q_base = Q + i_batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    k_base = K + i_batch.to(tl.int64) * stride_kb + (head // group).to(tl.int64) * stride_kh
    v_base = V + i_batch.to(tl.int64) * stride_vb + (head // group).to(tl.int64) * stride_vh
    q_mask = m_in[:, None] if HEAD_DIM == BLOCK_D else m_in[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_base + query.to(tl.int64)[:, None] * stride_qs + d[None, :], mask=q_mask, other=0.0)
    bias_base = Bias + i_sequence.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh

    kv_valid = valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS)
    scale_log2 = softmax_scale * LOG2E
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    if q_tokens is None:
        first_list = ((head // heads_per_list) * n_rows + row) * N_CLASSES
    else:
        k_base += kv_begin.to(tl.int64) * stride_ks
        v_base += kv_begin.to(tl.int64) * stride_vs
        first_list, has_lists = first_list_of(
            list_heads, i_sequence, head // heads_per_list, block, first_grid_row, grid_rows, N_CLASSES
        )  # fmt: skip

    for i_class in tl.static_range(N_CLASSES):
        if q_tokens is None:
            lo = tl.load(Offsets + first_list + i_class)
            hi = tl.load(Offsets + first_list + i_class + 1)
        else:
            lo = tl.load(Offsets + first_list + i_class, mask=has_lists, other=0)
            hi = tl.load(Offsets + first_list + i_class + 1, mask=has_lists, other=0)
        acc, m, l = attend_class(
            q, Sums(acc, m, l), Queries(position0, position, query, m_in, head),
            Blocks(
                Indices, Entries, lo, hi,
                tl.load(masks.Splits + first_list + i_class, mask=has_lists, other=0) if masks is not None else None, masks,
            ),
            Keys(k_base, v_base, stride_ks, stride_vs, kv_valid, has_edge, q_tokens is not None),
            BlockBias(bias_base, stride_be, bias_base),
            KeyPadding(
                Padding if q_tokens is None else Padding + kv_begin.to(tl.int64) * stride_ps, i_batch, stride_pb, stride_ps
            ),
            Dropout(Seed, sequence_head, threshold, keep_scale),
            Scores(
                scale_log2, softmax_scale / softcap if softcap is not None else None,
                softcap * LOG2E if softcap is not None else None,
                tl.load(Slopes + head) * LOG2E if Slopes is not None else None,
                PairBias(
                    attn_bias.base + i_batch.to(tl.int64) * attn_bias.stride_b + head.to(tl.int64) * attn_bias.stride_h
                    + (kv_begin.to(tl.int64) * attn_bias.stride_k if q_tokens is not None else 0),
                    attn_bias.stride_q, attn_bias.stride_k,
                ) if attn_bias is not None else None,
                EXACT_TANH,
            ),
            1 << ((RATES_LOG2 >> (4 * i_class)) & 15),
            Sizes(HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_M, BLOCK_N),
            Options(IS_CAUSAL, HAS_BIAS, HAS_PADDING, DROPOUT, SCALE_POSITIVE, PRECISION),
        )  # fmt: skip

    if q_tokens is not None:
        l = tl.where(m_in, l, 0.0)  # padding among the queries
    empty = l == 0.0
    if Sinks is not None:
        # a logit like that of a key, but for its value 0
        sink = tl.load(Sinks + head).to(tl.float32) * LOG2E
        m_new = tl.maximum(m, sink)
        alpha = tl.where(empty, 0.0, tl.exp2(m - m_new))
        l = l * alpha + tl.exp2(sink - m_new)
        acc = acc * alpha[:, None]
        m = m_new
    acc = acc / tl.where(empty, 1.0, l)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.log2(tl.where(empty, 1.0, l))) * LN2)
    if q_tokens is not None:
        acc = tl.where(empty[:, None], 0.0, acc)
    tl.store(Lse + batch_head.to(tl.int64) * q_len + query, lse, mask=m_store)
    out_base = Out + i_batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    out_mask = m_store[:, None] & (dv < V_HEAD_DIM)[None, :]
    out_ptrs = out_base + query.to(tl.int64)[:, None] * stride_os + dv[None, :]
    tl.store(out_ptrs, acc.to(Out.dtype.element_ty), mask=out_mask)
