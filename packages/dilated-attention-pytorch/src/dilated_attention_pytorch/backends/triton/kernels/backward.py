"""Backward kernels, deterministic: no atomics, every gradient is written once, by one program.

With p = exp(s - lse) and delta = sum(grad_out * out) - grad_lse (Dao et al., arXiv:2307.08691):
    ds = p * (grad_out v^T - delta);   dv = p^T grad_out;   dk = scale * ds^T q;   dq = scale * ds k
delta_kernel:  delta of every query.
dq_kernel:     one program per query tile, over the row's list, as in the forward.
dkdv_kernel:   one program per key tile, over the column's list (the transpose) and the heads that share the keys.
               With token dilation a program takes the keys of one residue, so that a head that drops them is
               skipped whole.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masking import (
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
    Column,
    ColumnOptions,
    Dropout,
    KeyGradients,
    KeyPadding,
    Keys,
    Options,
    PairBias,
    Pairs,
    Queries,
    QueryValues,
    Rows,
    Scores,
    Sizes,
)
from .scores import added, block_bias, block_biases, in_log2, tanh
from .sequences import block_of, first_list_of, in_elements, sequence_of


@triton.jit
def load_lse(Lse, offsets, mask):
    """lse in units of log2; +inf (all weights 0) for queries that see no key or do not exist."""
    lse = tl.load(Lse + offsets, mask=mask, other=float("inf") if mask is not None else None)
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)


@triton.jit(do_not_specialize=UNSPECIALISED)
def delta_kernel(
    Out, GradOut, GradLse, Delta, Lse, Sinks, SinkSums,
    stride_ob, stride_os, stride_oh, stride_gb, stride_gs, stride_gh,
    stride_lb, stride_lh, stride_ls, q_len, num_heads,
    V_HEAD_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """delta = sum(grad_out * out) - grad_lse, float32 (batch, num_heads, q_len).

    With Sinks, also the share of each tile in their gradient, -exp(sink - lse) * delta.
    """
    stride_ob, stride_os, stride_oh = in_elements(stride_ob, stride_os, stride_oh, UNIT)
    stride_gb, stride_gs, stride_gh = in_elements(stride_gb, stride_gs, stride_gh, UNIT)
    n_tiles = tl.cdiv(q_len, BLOCK_M)
    query = (tl.program_id(0) % n_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    batch_head = tl.program_id(0) // n_tiles
    i_batch, head = (batch_head // num_heads).to(tl.int64), (batch_head % num_heads).to(tl.int64)
    dv = tl.arange(0, BLOCK_DV)
    m_in = query < q_len
    mask = m_in[:, None] & (dv < V_HEAD_DIM)[None, :]
    query64 = query.to(tl.int64)
    out_ptrs = Out + i_batch * stride_ob + head * stride_oh + query64[:, None] * stride_os + dv[None, :]
    grad_ptrs = GradOut + i_batch * stride_gb + head * stride_gh + query64[:, None] * stride_gs + dv[None, :]
    out = tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if HAS_GRAD_LSE:
        grad_lse = tl.load(
            GradLse + i_batch * stride_lb + head * stride_lh + query64 * stride_ls, mask=m_in, other=0.0
        )
        delta -= grad_lse.to(tl.float32)
    tl.store(Delta + batch_head.to(tl.int64) * q_len + query, delta, mask=m_in)
    if Sinks is not None:
        lse = load_lse(Lse, batch_head.to(tl.int64) * q_len + query, m_in)
        share = tl.exp2(tl.load(Sinks + head).to(tl.float32) * LOG2E - lse) * delta
        tl.store(SinkSums + tl.program_id(0), -tl.sum(share))


@triton.jit
def dq_step(k, v, values, dq, pairs, dropout, scores, MASKED: tl.constexpr, sizes, options):
    """Add one tile of keys (k and v as (BLOCK_N, dim)) to dq; also the gradient of the tile's scores."""
    ADDED: tl.constexpr = options.HAS_BIAS or (scores.slope_log2 is not None or scores.attn_bias is not None)
    s = tl.dot(values.q, tl.trans(k), input_precision=options.PRECISION)
    if scores.cap_log2 is not None:
        t = tanh(s * scores.scale_over_cap, scores.EXACT_TANH)
        s = t * scores.cap_log2
    else:
        s = s * scores.scale_log2
    if ADDED:
        s = added(s, pairs, scores, options.HAS_BIAS)
    p = tl.exp2(s - values.lse[:, None])
    if MASKED:
        p = tl.where(pairs.visible, p, 0.0)
    dp = tl.dot(values.grad_out, tl.trans(v), input_precision=options.PRECISION)
    if options.DROPOUT:
        keep = dropout_keep(dropout, pairs.key, pairs.position, sizes.BLOCK_M, sizes.BLOCK_N)
        dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
    ds = p * (dp - values.delta[:, None])
    ds_of_product = ds
    if scores.cap_log2 is not None:
        ds_of_product = ds * (1.0 - t * t)
    return tl.dot(ds_of_product.to(k.dtype), k, dq, input_precision=options.PRECISION), ds


@triton.jit
def dq_masked_step(values, dq, queries, keys, key, n_in, allowed, bias, dropout, scores, sizes, options):
    """`dq_step` of the keys of `n_in`, of which a query may see a part: what is `allowed` (None: all)."""
    d, dv = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV)
    visible = (
        n_in[None, :] & (key[None, :] <= queries.position[:, None]) if options.IS_CAUSAL else n_in[None, :]
    )
    if allowed is not None:
        visible = visible & allowed
    key64 = key.to(tl.int64)
    k_mask = n_in[:, None] & (d < sizes.HEAD_DIM)[None, :]
    v_mask = n_in[:, None] & (dv < sizes.V_HEAD_DIM)[None, :]
    k_ptrs = keys.k_base + key64[:, None] * keys.stride_ks + d[None, :]
    k = tl.load(k_ptrs, mask=k_mask, other=0.0)
    v_ptrs = keys.v_base + key64[:, None] * keys.stride_vs + dv[None, :]
    v = tl.load(v_ptrs, mask=v_mask, other=0.0)
    return dq_step(
        k, v, values, dq,
        Pairs(
            key[None, :], queries.position[:, None], queries.query[:, None], n_in[None, :] & queries.m_in[:, None], visible, bias
        ),
        dropout, scores, True, sizes, options,
    )  # fmt: skip


@triton.jit
def dq_class(
    values, dq, queries, blocks, keys, bias_of, padding, dropout, scores, RATE: tl.constexpr, sizes, options
):
    """Add the keys of one distance class of the row's list to dq."""
    BLOCK_SIZE: tl.constexpr = sizes.BLOCK_SIZE
    BLOCK_N: tl.constexpr = sizes.BLOCK_N
    TILES_M: tl.constexpr = BLOCK_SIZE // sizes.BLOCK_M
    PARTS_N: tl.constexpr = BLOCK_SIZE // BLOCK_N if BLOCK_SIZE > BLOCK_N else 1
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    Indices, Entries, lo, hi = blocks.Indices, blocks.Entries, blocks.lo, blocks.hi
    d, dv, n = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV), tl.arange(0, BLOCK_N)
    k_offsets = n[:, None] * keys.stride_ks + d[None, :]
    v_offsets = n[:, None] * keys.stride_vs + dv[None, :]
    if RATE == 1 and BLOCK_SIZE >= BLOCK_N:
        n_whole, n_visible = whole_and_visible(blocks, queries.position0, keys, sizes, options)
        for t in tl.range(0, n_whole * PARTS_N):
            entry = lo + t // PARTS_N
            key0 = tl.load(Indices + entry) * BLOCK_SIZE + (t % PARTS_N) * BLOCK_N
            k_tile = keys.k_base + key0.to(tl.int64) * keys.stride_ks
            v_tile = keys.v_base + key0.to(tl.int64) * keys.stride_vs
            if sizes.HEAD_DIM == sizes.BLOCK_D:
                k = tl.load(k_tile + k_offsets)
            else:
                k = tl.load(k_tile + k_offsets, mask=(d < sizes.HEAD_DIM)[None, :], other=0.0)
            if sizes.V_HEAD_DIM == sizes.BLOCK_DV:
                v = tl.load(v_tile + v_offsets)
            else:
                v = tl.load(v_tile + v_offsets, mask=(dv < sizes.V_HEAD_DIM)[None, :], other=0.0)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_bias(bias_of, Entries, entry)
            dq, ds = dq_step(
                k, v, values, dq,
                Pairs((key0 + n)[None, :], queries.position[:, None], queries.query[:, None], queries.m_in[:, None], True, bias),
                dropout, scores, False, sizes, options,
            )  # fmt: skip
            if options.HAS_BIAS:
                slot = tl.load(Entries + entry).to(tl.int64) * TILES_M * PARTS_N + t % PARTS_N
                tl.store(bias_of.gradient + slot, tl.sum(ds))
        end = edge_end(blocks, n_visible, queries.position0, keys.kv_valid, sizes, options)
        for t in tl.range(n_whole * PARTS_N, end * PARTS_N, num_stages=1):
            entry = entry_of(blocks, t // PARTS_N, n_visible)
            key = tl.load(Indices + entry) * BLOCK_SIZE + (t % PARTS_N) * BLOCK_N + n
            n_in = key < keys.kv_valid
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_bias(bias_of, Entries, entry)
            if options.HAS_PADDING:
                n_in = not_padded(padding, key, n_in)
            dq, ds = dq_masked_step(
                values, dq, queries, keys, key, n_in,
                allowed_in_tile(
                    blocks.masks, entry, queries.position & (BLOCK_SIZE - 1), (t % PARTS_N) * BLOCK_N, BLOCK_SIZE, BLOCK_N, False
                ) if blocks.masks is not None else None,
                bias, dropout, scores, sizes, options,
            )  # fmt: skip
            if options.HAS_BIAS:
                slot = tl.load(Entries + entry).to(tl.int64) * TILES_M * PARTS_N + t % PARTS_N
                tl.store(bias_of.gradient + slot, tl.sum(ds))
    else:
        if keys.BEYOND and blocks.masks is None:
            past_end = past_visible(queries.position0, keys.kv_valid, sizes, options.IS_CAUSAL)
            hi = lo + count_below(Indices, lo, hi, past_end)
        # not pipelined: see forward.py
        for t in tl.range(0, tl.cdiv((hi - lo) * KEYS, BLOCK_N), num_stages=1):
            entry, key, listed = gathered_tokens(Indices, lo, hi, t, queries.head, RATE, BLOCK_SIZE, BLOCK_N)
            n_in = listed & (key < keys.kv_valid)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_biases(bias_of, Entries, entry, listed)
            if options.HAS_PADDING:
                n_in = not_padded(padding, key, n_in)
            dq, ds = dq_masked_step(
                values, dq, queries, keys, key, n_in,
                allowed_pairs(
                    blocks.masks, entry[None, :], (queries.position & (BLOCK_SIZE - 1))[:, None],
                    (key & (BLOCK_SIZE - 1))[None, :], n_in[None, :], BLOCK_SIZE,
                ) if blocks.masks is not None else None,
                bias, dropout, scores, sizes, options,
            )  # fmt: skip
            if options.HAS_BIAS:
                if KEYS >= BLOCK_N:  # the tile lies in one entry
                    first = tl.load(Entries + lo + t * BLOCK_N // KEYS).to(tl.int64)
                    part = t % (KEYS // BLOCK_N)
                    tl.store(bias_of.gradient + first * TILES_M * PARTS_N + part, tl.sum(ds))
                else:
                    ENTRIES: tl.constexpr = BLOCK_N // KEYS
                    sums = tl.sum(tl.reshape(tl.sum(ds, 0), [ENTRIES, KEYS]), 1)
                    e = lo + t * ENTRIES + tl.arange(0, ENTRIES)
                    where = tl.load(Entries + e, mask=e < hi, other=0).to(tl.int64)
                    tl.store(bias_of.gradient + where * TILES_M * PARTS_N, sums, mask=e < hi)
    return dq


@triton.jit(do_not_specialize=UNSPECIALISED)
def dq_kernel(
    Q, K, V, GradOut, Lse, Delta, Offsets, Indices, Entries, Bias, KvLengths, Padding, Seed, GradQ, GradBias,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_vb, stride_vs, stride_vh, stride_gb, stride_gs, stride_gh,
    stride_ob, stride_os, stride_oh, stride_bb, stride_bh, stride_be, stride_pb, stride_ps,
    q_len, kv_len, q_offset, first_row, n_rows, num_heads, group, heads_per_list, has_edge, n_slots, slot_sequences, slot_heads,
    softmax_scale, threshold, keep_scale,
    Table, max_rows, max_cols, q_tokens, kv_tokens, q_position, first_grid_row, grid_rows, grid_cols, list_heads,
    masks, softcap, Slopes, attn_bias,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, N_CLASSES: tl.constexpr, RATES_LOG2: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_KV_LENGTHS: tl.constexpr, HAS_PADDING: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr, EXACT_TANH: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """dq of one query tile; the strides `stride_o*` are those of GradQ. What follows `keep_scale` may be None."""
    stride_qb, stride_qs, stride_qh = in_elements(stride_qb, stride_qs, stride_qh, UNIT)
    stride_kb, stride_ks, stride_kh = in_elements(stride_kb, stride_ks, stride_kh, UNIT)
    stride_vb, stride_vs, stride_vh = in_elements(stride_vb, stride_vs, stride_vh, UNIT)
    stride_gb, stride_gs, stride_gh = in_elements(stride_gb, stride_gs, stride_gh, UNIT)
    stride_ob, stride_os, stride_oh = in_elements(stride_ob, stride_os, stride_oh, UNIT)
    TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
    PARTS_N: tl.constexpr = BLOCK_SIZE // BLOCK_N if BLOCK_SIZE > BLOCK_N else 1
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

    query64 = query.to(tl.int64)
    q_base = Q + i_batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    k_base = K + i_batch.to(tl.int64) * stride_kb + (head // group).to(tl.int64) * stride_kh
    v_base = V + i_batch.to(tl.int64) * stride_vb + (head // group).to(tl.int64) * stride_vh
    grad_base = GradOut + i_batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh
    q_mask = m_in[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_base + query64[:, None] * stride_qs + d[None, :], mask=q_mask, other=0.0)
    grad_mask = m_in[:, None] & (dv < V_HEAD_DIM)[None, :]
    grad_out = tl.load(grad_base + query64[:, None] * stride_gs + dv[None, :], mask=grad_mask, other=0.0)
    lse = load_lse(Lse, batch_head.to(tl.int64) * q_len + query, m_in)
    delta = tl.load(Delta + batch_head.to(tl.int64) * q_len + query, mask=m_in, other=0.0)
    bias_base = Bias + i_sequence.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh
    # GradBias: (sequences, heads, n_slots, TILES_M * PARTS_N), a slot for every tile of a block
    slot = (i_sequence % slot_sequences).to(tl.int64) * slot_heads + head % slot_heads
    grad_bias = GradBias + (slot * n_slots * TILES_M + i_tile % TILES_M) * PARTS_N

    kv_valid = valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS)
    scale_log2 = softmax_scale * LOG2E
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
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
        dq = dq_class(
            QueryValues(q, grad_out, lse, delta), dq, Queries(position0, position, query, m_in, head),
            Blocks(
                Indices, Entries, lo, hi,
                tl.load(masks.Splits + first_list + i_class, mask=has_lists, other=0) if masks is not None else None, masks,
            ),
            Keys(k_base, v_base, stride_ks, stride_vs, kv_valid, has_edge, q_tokens is not None),
            BlockBias(bias_base, stride_be, grad_bias),
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
            Options(IS_CAUSAL, HAS_BIAS, HAS_PADDING, DROPOUT, True, PRECISION),
        )  # fmt: skip

    out_ptrs = GradQ + i_batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    out_ptrs += query64[:, None] * stride_os + d[None, :]
    q_store = q_mask if q_tokens is None else m_store[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(out_ptrs, (dq * softmax_scale).to(GradQ.dtype.element_ty), mask=q_store)


@triton.jit
def dkdv_step(column, values, sums, pairs, dropout, scores, MASKED: tl.constexpr, sizes, options):
    """Add one tile of queries (q and grad_out as (BLOCK_M, dim)) to dk and dv.

    Scores are (BLOCK_N, BLOCK_M), or with QUERIES_FIRST (BLOCK_M, BLOCK_N) and dk, dv are (dim, BLOCK_N): the first
    side of a warpgroup product is at least 64 long, which the keys that token dilation keeps are not. Scores are then as in a
    plain call.
    """
    BLOCK_M: tl.constexpr = sizes.BLOCK_M
    BLOCK_N: tl.constexpr = sizes.BLOCK_N
    PRECISION: tl.constexpr = options.PRECISION
    k, v, q, grad_out, lse, delta = column.k, column.v, values.q, values.grad_out, values.lse, values.delta
    dk, dv = sums.dk, sums.dv
    if options.QUERIES_FIRST:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scores.scale_log2
        if options.HAS_BIAS:
            s += in_log2(tl.trans(pairs.bias) if len(pairs.bias.shape) == 2 else pairs.bias)
        p = tl.exp2(s - lse[:, None])
        if MASKED:
            p = tl.where(tl.trans(pairs.visible), p, 0.0)
        dp = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        p_dropped = p
        if options.DROPOUT:
            keep = dropout_keep(dropout, tl.trans(pairs.key), tl.trans(pairs.position), BLOCK_M, BLOCK_N)
            p_dropped = tl.where(keep, p * dropout.keep_scale, 0.0)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        dv = tl.dot(tl.trans(grad_out), p_dropped.to(grad_out.dtype), dv, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dk = tl.dot(tl.trans(q), ds.to(q.dtype), dk, input_precision=PRECISION)
    else:
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if scores.cap_log2 is not None:
            t = tanh(s * scores.scale_over_cap, scores.EXACT_TANH)
            s = t * scores.cap_log2
        else:
            s = s * scores.scale_log2
        if options.HAS_BIAS or (scores.slope_log2 is not None or scores.attn_bias is not None):
            s = added(s, pairs, scores, options.HAS_BIAS)
        p = tl.exp2(s - lse[None, :])
        if MASKED:
            p = tl.where(pairs.visible, p, 0.0)
        dp = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        p_dropped = p
        if options.DROPOUT:
            keep = dropout_keep(dropout, pairs.key, pairs.position, BLOCK_N, BLOCK_M)
            p_dropped = tl.where(keep, p * dropout.keep_scale, 0.0)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        dv = tl.dot(p_dropped.to(grad_out.dtype), grad_out, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        if scores.cap_log2 is not None:
            ds = ds * (1.0 - t * t)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def dkdv_masked_step(
    column, sums, rows, position, query, m_in, allowed, bias, dropout, scores, sizes, options
):
    """`dkdv_step` of the queries of `m_in`, which may see a part of the keys: what is `allowed` (None: all)."""
    d, d_v = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV)
    query64 = query.to(tl.int64)
    q_mask = m_in[:, None] & (d < sizes.HEAD_DIM)[None, :]
    grad_mask = m_in[:, None] & (d_v < sizes.V_HEAD_DIM)[None, :]
    q_ptrs = rows.q_base + query64[:, None] * rows.stride_qs + d[None, :]
    grad_ptrs = rows.grad_base + query64[:, None] * rows.stride_gs + d_v[None, :]
    q = tl.load(q_ptrs, mask=q_mask, other=0.0)
    grad_out = tl.load(grad_ptrs, mask=grad_mask, other=0.0)
    lse = load_lse(rows.lse_base, query, m_in)
    delta = tl.load(rows.delta_base + query, mask=m_in, other=0.0)
    visible = column.n_in[:, None]
    if options.IS_CAUSAL:
        visible = visible & (column.key[:, None] <= position[None, :])
    if allowed is not None:
        visible = visible & allowed
    return dkdv_step(
        column, QueryValues(q, grad_out, lse, delta), sums,
        Pairs(
            column.key[:, None], position[None, :], query[None, :], column.n_in[:, None] & m_in[None, :], visible, bias
        ),
        dropout, scores, True, sizes, options,
    )  # fmt: skip


@triton.jit
def partial_rows(column, rows, blocks, sizes, options):
    """The entries of a column whose queries may see a part of the keys: two ranges, and a third of those with a mask.

    Returns where the first begins and ends, where the second does, and the third. Between the first two every query is there
    and sees every key.
    """
    Indices, lo, BLOCK_SIZE = blocks.Indices, blocks.lo, sizes.BLOCK_SIZE
    hi = blocks.split if blocks.masks is not None else blocks.hi
    position, past = rows.q_begin + rows.q_offset, rows.q_end + rows.q_offset
    first = block_of(position, BLOCK_SIZE)
    whole = block_of(position + BLOCK_SIZE - 1, BLOCK_SIZE)
    if options.IS_CAUSAL:  # rows before the key see nothing of it, those that cross it a part
        first = tl.maximum(first, column.first_key // BLOCK_SIZE)
        whole = tl.maximum(whole, (column.last_key + BLOCK_SIZE - 1) // BLOCK_SIZE)
    end = block_of(past + BLOCK_SIZE - 1, BLOCK_SIZE)
    n_first, n_whole, n_whole_end, n_end = lo - lo, lo - lo, hi - lo, hi - lo
    if rows.has_edge != 0:
        n_end = count_below(Indices, lo, hi, end - rows.first_row)
        n_whole_end = tl.minimum(
            count_below(Indices, lo, hi, block_of(past, BLOCK_SIZE) - rows.first_row), n_end
        )
    if options.IS_CAUSAL or rows.has_edge != 0:
        n_first = tl.minimum(count_below(Indices, lo, hi, first - rows.first_row), n_end)
        n_whole = tl.minimum(tl.maximum(count_below(Indices, lo, hi, whole - rows.first_row), n_first), n_end)
        n_whole_end = tl.maximum(n_whole_end, n_whole)
    masked, masked_end = 0, 0
    if blocks.masks is not None:
        masked = count_below(Indices, blocks.split, blocks.hi, first - rows.first_row)
        masked_end = tl.maximum(count_below(Indices, blocks.split, blocks.hi, end - rows.first_row), masked)
    return n_first, n_whole, n_whole_end, n_end, masked, masked_end


@triton.jit
def dkdv_class(column, sums, rows, blocks, bias_of, dropout, scores, sizes, options):
    """Add the queries of one distance class of the column's list, of one head, to dk and dv."""
    BLOCK_SIZE: tl.constexpr = sizes.BLOCK_SIZE
    BLOCK_M: tl.constexpr = sizes.BLOCK_M
    Indices, Entries, lo, hi = blocks.Indices, blocks.Entries, blocks.lo, blocks.hi
    first_row, q_offset, dk, dv = rows.first_row, rows.q_offset, sums.dk, sums.dv
    d, d_v, m = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV), tl.arange(0, BLOCK_M)
    q_offsets = m[:, None] * rows.stride_qs + d[None, :]
    grad_offsets = m[:, None] * rows.stride_gs + d_v[None, :]
    if BLOCK_SIZE >= BLOCK_M:
        TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
        # one loop for all: ptxas 12.8 gives the products of two loops an address that it never computed
        MASK_ALL: tl.constexpr = options.IS_CAUSAL and options.QUERIES_FIRST
        n_partial = 0
        n_end = hi - lo
        if MASK_ALL:  # rows before the key see nothing of it
            n_partial = count_below(Indices, lo, hi, column.first_key // BLOCK_SIZE - first_row)
        elif not options.QUERIES_FIRST:
            n_first, n_partial, n_end, past, masked, masked_end = partial_rows(
                column, rows, blocks, sizes, options
            )
            n_before, n_behind = n_partial - n_first, past - n_end
            n_masked = masked_end - masked
            for t in tl.range(0, (n_before + n_behind + n_masked) * TILES_M, num_stages=1):
                i = t // TILES_M
                entry = lo + tl.where(i < n_before, n_first + i, n_end + i - n_before)
                if blocks.masks is not None:
                    n_ranges = n_before + n_behind
                    entry = tl.where(i < n_ranges, entry, blocks.split + masked + i - n_ranges)
                row = tl.load(Indices + entry)
                position = (first_row + row) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M + m
                query = position - q_offset
                m_in = (query >= rows.q_begin) & (query < rows.q_end)
                bias = 0.0
                if options.HAS_BIAS:
                    bias = block_bias(bias_of, Entries, entry)
                dk, dv = dkdv_masked_step(
                    column, KeyGradients(dk, dv), rows, position, query, m_in,
                    allowed_of_rows(blocks.masks, column, entry, position, sizes, options)
                    if blocks.masks is not None else None,
                    bias, dropout, scores, sizes, options,
                )  # fmt: skip
        for t in tl.range(n_partial * TILES_M, n_end * TILES_M):
            entry = lo + t // TILES_M
            row = tl.load(Indices + entry)
            query0 = (first_row + row) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M - q_offset
            query = query0 + m
            m_in = (query >= 0) & (query < rows.q_end)
            q_tile = rows.q_base + query0.to(tl.int64) * rows.stride_qs
            grad_tile = rows.grad_base + query0.to(tl.int64) * rows.stride_gs
            if (options.EVEN_Q or not options.QUERIES_FIRST) and (
                sizes.HEAD_DIM == sizes.BLOCK_D and sizes.V_HEAD_DIM == sizes.BLOCK_DV
            ):
                q = tl.load(q_tile + q_offsets)
                grad_out = tl.load(grad_tile + grad_offsets)
            else:
                q = tl.load(q_tile + q_offsets, mask=m_in[:, None] & (d < sizes.HEAD_DIM)[None, :], other=0.0)
                grad_mask = m_in[:, None] & (d_v < sizes.V_HEAD_DIM)[None, :]
                grad_out = tl.load(grad_tile + grad_offsets, mask=grad_mask, other=0.0)
            if not options.QUERIES_FIRST:  # all of them are there
                lse = load_lse(rows.lse_base, query, None)
                delta = tl.load(rows.delta_base + query)
            else:
                lse = load_lse(rows.lse_base, query, m_in)
                delta = tl.load(rows.delta_base + query, mask=m_in, other=0.0)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_bias(bias_of, Entries, entry)
            visible = column.n_in[:, None]
            if MASK_ALL:
                visible = visible & (column.key[:, None] <= (query + q_offset)[None, :])
            dk, dv = dkdv_step(
                column, QueryValues(q, grad_out, lse, delta), KeyGradients(dk, dv),
                Pairs(
                    column.key[:, None], (query + q_offset)[None, :], query[None, :], column.n_in[:, None] & m_in[None, :],
                    visible, bias,
                ),
                dropout, scores, MASK_ALL, sizes, options,
            )  # fmt: skip
    else:  # a tile gathers the queries of several small blocks
        if rows.BEYOND and blocks.masks is None:
            past = block_of(rows.q_end + q_offset + BLOCK_SIZE - 1, BLOCK_SIZE) - first_row
            hi = lo + count_below(Indices, lo, hi, past)
            lo = lo + count_below(Indices, lo, hi, block_of(rows.q_begin + q_offset, BLOCK_SIZE) - first_row)
        for t in tl.range(0, tl.cdiv((hi - lo) * BLOCK_SIZE, BLOCK_M), num_stages=1):
            entry, place, m_in = gathered_tokens(Indices, lo, hi, t, 0, 1, BLOCK_SIZE, BLOCK_M)
            position = first_row * BLOCK_SIZE + place
            query = position - q_offset
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_biases(bias_of, Entries, entry, m_in)
            m_in = m_in & (query >= rows.q_begin) & (query < rows.q_end)
            dk, dv = dkdv_masked_step(
                column, KeyGradients(dk, dv), rows, position, query, m_in,
                allowed_pairs(
                    blocks.masks, entry[None, :], (position & (BLOCK_SIZE - 1))[None, :],
                    (column.key & (BLOCK_SIZE - 1))[:, None], m_in[None, :], BLOCK_SIZE,
                ) if blocks.masks is not None else None,
                bias, dropout, scores, sizes, options,
            )  # fmt: skip
    return dk, dv


@triton.jit
def allowed_of_rows(masks, column, entry, position, sizes, options):
    """Bool (BLOCK_N, BLOCK_M): the pairs of a column's tile and queries that the mask of an entry keeps."""
    query = position & (sizes.BLOCK_SIZE - 1)
    if options.KEY_STRIDE == 1:
        key0 = column.first_key & (sizes.BLOCK_SIZE - 1)
        return allowed_in_tile(masks, entry, query, key0, sizes.BLOCK_SIZE, sizes.BLOCK_N, True)
    else:
        key = (column.key & (sizes.BLOCK_SIZE - 1))[:, None]
        return allowed_pairs(masks, entry, query[None, :], key, True, sizes.BLOCK_SIZE)


@triton.jit(do_not_specialize=UNSPECIALISED)
def dkdv_kernel(
    Q, K, V, GradOut, Lse, Delta, Offsets, Indices, Entries, Bias, KvLengths, Padding, Seed, GradK, GradV,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_vb, stride_vs, stride_vh, stride_gb, stride_gs, stride_gh,
    stride_xb, stride_xs, stride_xh, stride_yb, stride_ys, stride_yh,
    stride_bb, stride_bh, stride_be, stride_pb, stride_ps,
    q_len, kv_len, q_offset, first_row, n_cols, num_heads, group, heads_per_list, has_edge, softmax_scale, threshold,
    keep_scale,
    Table, max_rows, max_cols, q_tokens, kv_tokens, q_position, first_grid_row, grid_rows, grid_cols, list_heads,
    masks, softcap, Slopes, attn_bias,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, N_CLASSES: tl.constexpr, RATES_LOG2: tl.constexpr, KEY_STRIDE: tl.constexpr,
    IS_CAUSAL: tl.constexpr, EVEN_Q: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr, HAS_PADDING: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES_FIRST: tl.constexpr, PACKED: tl.constexpr, EXACT_TANH: tl.constexpr, UNIT: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys first + KEY_STRIDE * (0 ... BLOCK_N - 1); strides x and y are GradK's and GradV's.

    What follows `keep_scale` may be None.
    """
    stride_qb, stride_qs, stride_qh = in_elements(stride_qb, stride_qs, stride_qh, UNIT)
    stride_kb, stride_ks, stride_kh = in_elements(stride_kb, stride_ks, stride_kh, UNIT)
    stride_vb, stride_vs, stride_vh = in_elements(stride_vb, stride_vs, stride_vh, UNIT)
    stride_gb, stride_gs, stride_gh = in_elements(stride_gb, stride_gs, stride_gh, UNIT)
    stride_xb, stride_xs, stride_xh = in_elements(stride_xb, stride_xs, stride_xh, UNIT)
    stride_yb, stride_ys, stride_yh = in_elements(stride_yb, stride_ys, stride_yh, UNIT)
    KEYS: tl.constexpr = BLOCK_SIZE // KEY_STRIDE
    PARTS: tl.constexpr = KEY_STRIDE * ((KEYS + BLOCK_N - 1) // BLOCK_N)
    n_tiles = (n_cols if q_tokens is None else max_cols) * PARTS
    num_kv_heads = num_heads // group
    i_tile = tl.program_id(0) % n_tiles
    sequence_kv_head = tl.program_id(0) // n_tiles
    i_sequence, kv_head = sequence_kv_head // num_kv_heads, sequence_kv_head % num_kv_heads
    col = i_tile // PARTS
    residue = i_tile % PARTS % KEY_STRIDE
    within = i_tile % PARTS // KEY_STRIDE * BLOCK_N + tl.arange(0, BLOCK_N)
    if q_tokens is None:
        i_batch = i_sequence
        key = col * BLOCK_SIZE + residue + within * KEY_STRIDE
        n_store = (within < KEYS) & (key < kv_len)
        n_in = n_store & (key < valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS))
    else:
        i_batch, q_offset, q_begin, q_end, kv_begin, kv_len = sequence_of(
            Table, q_position, q_tokens, kv_tokens, i_sequence, PACKED
        )
        q_len, first_row, n_cols = q_tokens, first_grid_row, grid_cols
        if not PACKED:
            col += block_of(-kv_begin, BLOCK_SIZE)
        if col * BLOCK_SIZE >= (kv_len if PACKED else kv_tokens - kv_begin):
            return
        key = col * BLOCK_SIZE + residue + within * KEY_STRIDE
        n_in = (within < KEYS) & (key >= 0) & (key < kv_len)
        n_store = n_in if PACKED else (within < KEYS) & (key >= -kv_begin) & (key < kv_tokens - kv_begin)
    if HAS_PADDING:
        n_in = not_padded(
            KeyPadding(
                Padding if q_tokens is None else Padding + kv_begin.to(tl.int64) * stride_ps, i_batch, stride_pb, stride_ps
            ),
            key, n_in,
        )  # fmt: skip
    first_key, last_key = tl.min(key), tl.max(key)
    d, d_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)

    key64 = key.to(tl.int64)
    if q_tokens is not None:
        key64 += kv_begin  # in memory
    k_base = K + i_batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
    v_base = V + i_batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
    k_mask = n_store[:, None] & (d < HEAD_DIM)[None, :]
    v_mask = n_store[:, None] & (d_v < V_HEAD_DIM)[None, :]
    # Padding may hold anything, and 0 * NaN is NaN.
    k_seen = n_in[:, None] & (d < HEAD_DIM)[None, :]
    v_seen = n_in[:, None] & (d_v < V_HEAD_DIM)[None, :]
    k = tl.load(k_base + key64[:, None] * stride_ks + d[None, :], mask=k_seen, other=0.0)
    v = tl.load(v_base + key64[:, None] * stride_vs + d_v[None, :], mask=v_seen, other=0.0)
    scale_log2 = softmax_scale * LOG2E
    dk = tl.zeros([BLOCK_D, BLOCK_N] if QUERIES_FIRST else [BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_DV, BLOCK_N] if QUERIES_FIRST else [BLOCK_N, BLOCK_DV], tl.float32)

    for i_group in range(group if GROUPED else 1):
        head = kv_head * group + i_group
        batch_head = i_batch * num_heads + head
        q_base = Q + i_batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
        grad_base = GradOut + i_batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh
        lse_base = Lse + batch_head.to(tl.int64) * q_len
        delta_base = Delta + batch_head.to(tl.int64) * q_len
        bias_base = Bias + i_sequence.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh
        if q_tokens is None:
            first_list = ((head // heads_per_list) * n_cols + col) * N_CLASSES
        else:
            first_list, has_lists = first_list_of(
                list_heads, i_sequence, head // heads_per_list, col, 0, n_cols, N_CLASSES
            )

        for i_class in tl.static_range(N_CLASSES):
            if q_tokens is None:
                lo = tl.load(Offsets + first_list + i_class)
                hi = tl.load(Offsets + first_list + i_class + 1)
            else:
                lo = tl.load(Offsets + first_list + i_class, mask=has_lists, other=0)
                hi = tl.load(Offsets + first_list + i_class + 1, mask=has_lists, other=0)
            # a head that drops this residue in this class has nothing to add
            kept = residue % (1 << ((RATES_LOG2 >> (4 * i_class)) & 15)) == head % (
                1 << ((RATES_LOG2 >> (4 * i_class)) & 15)
            )
            hi = tl.where(kept, hi, lo)
            dk, dv = dkdv_class(
                Column(k, v, key, n_in, first_key, last_key), KeyGradients(dk, dv),
                Rows(
                    q_base, grad_base, lse_base, delta_base, stride_qs, stride_gs, first_row, q_offset,
                    0 if q_tokens is None else q_begin, q_len if q_tokens is None else q_end, has_edge,
                    q_tokens is not None,
                ),
                Blocks(
                    Indices, Entries, lo, hi,
                    tl.minimum(tl.load(masks.Splits + first_list + i_class, mask=has_lists, other=0), hi)
                    if masks is not None else None, masks,
                ),
                BlockBias(bias_base, stride_be, bias_base),
                Dropout(Seed, i_sequence * num_heads + head, threshold, keep_scale),
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
                Sizes(HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_M, BLOCK_N),
                ColumnOptions(IS_CAUSAL, EVEN_Q, HAS_BIAS, DROPOUT, PRECISION, QUERIES_FIRST, KEY_STRIDE),
            )  # fmt: skip

    if QUERIES_FIRST:
        dk, dv = tl.trans(dk), tl.trans(dv)
    # what the keys that do not count have summed up
    dk, dv = tl.where(n_in[:, None], dk, 0.0), tl.where(n_in[:, None], dv, 0.0)
    x_ptrs = GradK + i_batch.to(tl.int64) * stride_xb + kv_head.to(tl.int64) * stride_xh
    x_ptrs += key64[:, None] * stride_xs + d[None, :]
    tl.store(x_ptrs, (dk * softmax_scale).to(GradK.dtype.element_ty), mask=k_mask)
    y_ptrs = GradV + i_batch.to(tl.int64) * stride_yb + kv_head.to(tl.int64) * stride_yh
    y_ptrs += key64[:, None] * stride_ys + d_v[None, :]
    tl.store(y_ptrs, dv.to(GradV.dtype.element_ty), mask=v_mask)
