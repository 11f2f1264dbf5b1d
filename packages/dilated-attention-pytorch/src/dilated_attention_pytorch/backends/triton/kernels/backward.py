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
    block_bias,
    block_biases,
    count_below,
    dropout_keep,
    gathered_tokens,
    not_padded,
    valid_keys,
    whole_and_visible,
)
from .parts import (
    BlockBias,
    Blocks,
    Column,
    ColumnOptions,
    Dropout,
    KeyGradients,
    KeyPadding,
    Keys,
    Options,
    Pairs,
    Queries,
    QueryValues,
    Rows,
    Sizes,
)


@triton.jit
def delta_kernel(
    Out, GradOut, GradLse, Delta,
    stride_ob, stride_os, stride_oh, stride_od, stride_gb, stride_gs, stride_gh, stride_gd,
    stride_lb, stride_lh, stride_ls, q_len, num_heads,
    V_HEAD_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """delta = sum(grad_out * out) - grad_lse, float32 (batch, num_heads, q_len)."""
    n_tiles = tl.cdiv(q_len, BLOCK_M)
    query = (tl.program_id(0) % n_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    batch_head = tl.program_id(0) // n_tiles
    i_batch, head = (batch_head // num_heads).to(tl.int64), (batch_head % num_heads).to(tl.int64)
    dv = tl.arange(0, BLOCK_DV)
    m_in = query < q_len
    mask = m_in[:, None] & (dv < V_HEAD_DIM)[None, :]
    query64 = query.to(tl.int64)
    out_ptrs = (
        Out + i_batch * stride_ob + head * stride_oh + query64[:, None] * stride_os + dv[None, :] * stride_od
    )
    grad_ptrs = (
        GradOut
        + i_batch * stride_gb
        + head * stride_gh
        + query64[:, None] * stride_gs
        + dv[None, :] * stride_gd
    )
    out = tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, 1)
    if HAS_GRAD_LSE:
        grad_lse = tl.load(
            GradLse + i_batch * stride_lb + head * stride_lh + query64 * stride_ls, mask=m_in, other=0.0
        )
        delta -= grad_lse.to(tl.float32)
    tl.store(Delta + batch_head.to(tl.int64) * q_len + query, delta, mask=m_in)


@triton.jit
def load_lse(Lse, offsets, mask):
    """lse in units of log2; +inf (all weights 0) for queries that see no key or do not exist."""
    lse = tl.load(Lse + offsets, mask=mask, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)


@triton.jit
def dq_step(k, v, values, dq, pairs, dropout, scale_log2, MASKED: tl.constexpr, sizes, options):
    """Add one tile of keys (k and v as (BLOCK_N, dim)) to dq; also ds of the tile."""
    s = tl.dot(values.q, tl.trans(k), input_precision=options.PRECISION) * scale_log2
    if options.HAS_BIAS:
        s += pairs.bias * LOG2E
    p = tl.exp2(s - values.lse[:, None])
    if MASKED:
        p = tl.where(pairs.visible, p, 0.0)
    dp = tl.dot(values.grad_out, tl.trans(v), input_precision=options.PRECISION)
    if options.DROPOUT:
        keep = dropout_keep(dropout, pairs.key, pairs.query, sizes.BLOCK_M, sizes.BLOCK_N)
        dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
    ds = p * (dp - values.delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=options.PRECISION), ds


@triton.jit
def dq_masked_step(values, dq, queries, keys, key, n_in, bias, dropout, scale_log2, sizes, options):
    """`dq_step` of the keys of `n_in`, of which a query may see a part."""
    d, dv = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV)
    visible = (
        n_in[None, :] & (key[None, :] <= queries.position[:, None]) if options.IS_CAUSAL else n_in[None, :]
    )
    key64 = key.to(tl.int64)
    k_mask = n_in[:, None] & (d < sizes.HEAD_DIM)[None, :]
    v_mask = n_in[:, None] & (dv < sizes.V_HEAD_DIM)[None, :]
    k_ptrs = keys.k_base + key64[:, None] * keys.stride_ks + d[None, :] * keys.stride_kd
    k = tl.load(k_ptrs, mask=k_mask, other=0.0)
    v_ptrs = keys.v_base + key64[:, None] * keys.stride_vs + dv[None, :] * keys.stride_vd
    v = tl.load(v_ptrs, mask=v_mask, other=0.0)
    return dq_step(
        k, v, values, dq, Pairs(key[None, :], queries.query[:, None], visible, bias), dropout, scale_log2, True, sizes, options
    )  # fmt: skip


@triton.jit
def dq_class(
    values, dq, queries, blocks, keys, bias_of, padding, dropout, scale_log2, RATE: tl.constexpr, sizes, options
):  # fmt: skip
    """Add the keys of one distance class of the row's list to dq."""
    BLOCK_SIZE: tl.constexpr = sizes.BLOCK_SIZE
    BLOCK_N: tl.constexpr = sizes.BLOCK_N
    TILES_M: tl.constexpr = BLOCK_SIZE // sizes.BLOCK_M
    PARTS_N: tl.constexpr = BLOCK_SIZE // BLOCK_N if BLOCK_SIZE > BLOCK_N else 1
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    Indices, Entries, lo, hi = blocks.Indices, blocks.Entries, blocks.lo, blocks.hi
    d, dv, n = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV), tl.arange(0, BLOCK_N)
    k_offsets = n[:, None] * keys.stride_ks + d[None, :] * keys.stride_kd
    v_offsets = n[:, None] * keys.stride_vs + dv[None, :] * keys.stride_vd
    if RATE == 1 and BLOCK_SIZE >= BLOCK_N:
        n_whole, n_visible = whole_and_visible(blocks, queries.position0, keys.kv_valid, sizes, options)
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
                k, v, values, dq, Pairs((key0 + n)[None, :], queries.query[:, None], True, bias), dropout, scale_log2,
                False, sizes, options,
            )  # fmt: skip
            if options.HAS_BIAS:
                slot = tl.load(Entries + entry).to(tl.int64) * TILES_M * PARTS_N + t % PARTS_N
                tl.store(bias_of.gradient + slot, tl.sum(ds))
        if options.HAS_EDGE:
            for t in tl.range(n_whole * PARTS_N, n_visible * PARTS_N, num_stages=1):
                entry = lo + t // PARTS_N
                key = tl.load(Indices + entry) * BLOCK_SIZE + (t % PARTS_N) * BLOCK_N + n
                n_in = key < keys.kv_valid
                bias = 0.0
                if options.HAS_BIAS:
                    bias = block_bias(bias_of, Entries, entry)
                if options.HAS_PADDING:
                    n_in = not_padded(padding, key, n_in)
                dq, ds = dq_masked_step(
                    values, dq, queries, keys, key, n_in, bias, dropout, scale_log2, sizes, options
                )
                if options.HAS_BIAS:
                    slot = tl.load(Entries + entry).to(tl.int64) * TILES_M * PARTS_N + t % PARTS_N
                    tl.store(bias_of.gradient + slot, tl.sum(ds))
    else:
        # not pipelined: see forward.py
        for t in tl.range(0, tl.cdiv((hi - lo) * KEYS, BLOCK_N), num_stages=1):
            entry, key, listed = gathered_tokens(blocks, t, queries.head, RATE, BLOCK_SIZE, BLOCK_N)
            n_in = listed & (key < keys.kv_valid)
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_biases(bias_of, Entries, entry, listed)
            if options.HAS_PADDING:
                n_in = not_padded(padding, key, n_in)
            dq, ds = dq_masked_step(
                values, dq, queries, keys, key, n_in, bias, dropout, scale_log2, sizes, options
            )
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


@triton.jit
def dq_kernel(
    Q, K, V, GradOut, Lse, Delta, Offsets, Indices, Entries, Bias, KvLengths, Padding, Seed, GradQ, GradBias,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd, stride_gb, stride_gs, stride_gh, stride_gd,
    stride_ob, stride_os, stride_oh, stride_od, stride_bb, stride_bh, stride_be, stride_pb, stride_ps,
    q_len, kv_len, q_offset, first_row, n_rows, num_heads, n_entries, softmax_scale, threshold, keep_scale,
    GROUP: tl.constexpr, HEADS_PER_LIST: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, N_CLASSES: tl.constexpr, RATES_LOG2: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_EDGE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_KV_LENGTHS: tl.constexpr, HAS_PADDING: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one query tile; the strides `stride_o*` are those of GradQ."""
    TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
    PARTS_N: tl.constexpr = BLOCK_SIZE // BLOCK_N if BLOCK_SIZE > BLOCK_N else 1
    n_tiles = n_rows * TILES_M
    i_tile = tl.program_id(0) % n_tiles
    batch_head = tl.program_id(0) // n_tiles
    i_batch, head = batch_head // num_heads, batch_head % num_heads
    row = i_tile // TILES_M
    position0 = (first_row + row) * BLOCK_SIZE + (i_tile % TILES_M) * BLOCK_M
    position = position0 + tl.arange(0, BLOCK_M)
    query = position - q_offset
    m_in = (query >= 0) & (query < q_len)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)

    query64 = query.to(tl.int64)
    q_base = Q + i_batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    k_base = K + i_batch.to(tl.int64) * stride_kb + (head // GROUP).to(tl.int64) * stride_kh
    v_base = V + i_batch.to(tl.int64) * stride_vb + (head // GROUP).to(tl.int64) * stride_vh
    grad_base = GradOut + i_batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh
    q_mask = m_in[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_base + query64[:, None] * stride_qs + d[None, :] * stride_qd, mask=q_mask, other=0.0)
    grad_mask = m_in[:, None] & (dv < V_HEAD_DIM)[None, :]
    grad_out = tl.load(
        grad_base + query64[:, None] * stride_gs + dv[None, :] * stride_gd, mask=grad_mask, other=0.0
    )
    lse = load_lse(Lse, batch_head.to(tl.int64) * q_len + query, m_in)
    delta = tl.load(Delta + batch_head.to(tl.int64) * q_len + query, mask=m_in, other=0.0)
    bias_base = Bias + i_batch.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh
    # GradBias: (batch, num_heads, n_entries, TILES_M * PARTS_N), a slot for every tile of a block
    grad_bias = GradBias + (batch_head.to(tl.int64) * n_entries * TILES_M + i_tile % TILES_M) * PARTS_N

    kv_valid = valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS)
    scale_log2 = softmax_scale * LOG2E
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first_list = ((head // HEADS_PER_LIST) * n_rows + row) * N_CLASSES

    for i_class in tl.static_range(N_CLASSES):
        lo = tl.load(Offsets + first_list + i_class)
        hi = tl.load(Offsets + first_list + i_class + 1)
        dq = dq_class(
            QueryValues(q, grad_out, lse, delta), dq, Queries(position0, position, query, head),
            Blocks(Indices, Entries, lo, hi), Keys(k_base, v_base, stride_ks, stride_kd, stride_vs, stride_vd, kv_valid),
            BlockBias(bias_base, stride_be, grad_bias), KeyPadding(Padding, i_batch, stride_pb, stride_ps),
            Dropout(Seed, batch_head, threshold, keep_scale), scale_log2, 1 << ((RATES_LOG2 >> (4 * i_class)) & 15),
            Sizes(HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_M, BLOCK_N),
            Options(IS_CAUSAL, HAS_EDGE, HAS_BIAS, HAS_PADDING, DROPOUT, True, PRECISION),
        )  # fmt: skip

    out_ptrs = GradQ + i_batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    out_ptrs += query64[:, None] * stride_os + d[None, :] * stride_od
    tl.store(out_ptrs, (dq * softmax_scale).to(GradQ.dtype.element_ty), mask=q_mask)


@triton.jit
def dkdv_step(column, values, sums, pairs, dropout, scale_log2, MASKED: tl.constexpr, sizes, options):
    """Add one tile of queries (q and grad_out as (BLOCK_M, dim)) to dk and dv.

    Scores are (BLOCK_N, BLOCK_M), or with QUERIES_FIRST (BLOCK_M, BLOCK_N) and dk, dv are (dim, BLOCK_N): the first
    side of a warpgroup product is at least 64 long, which the keys that token dilation keeps are not.
    """
    BLOCK_M: tl.constexpr = sizes.BLOCK_M
    BLOCK_N: tl.constexpr = sizes.BLOCK_N
    PRECISION: tl.constexpr = options.PRECISION
    k, v, q, grad_out, lse, delta = column.k, column.v, values.q, values.grad_out, values.lse, values.delta
    dk, dv = sums.dk, sums.dv
    if options.QUERIES_FIRST:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if options.HAS_BIAS:
            s += (tl.trans(pairs.bias) if len(pairs.bias.shape) == 2 else pairs.bias) * LOG2E
        p = tl.exp2(s - lse[:, None])
        if MASKED:
            p = tl.where(tl.trans(pairs.visible), p, 0.0)
        dp = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        p_dropped = p
        if options.DROPOUT:
            keep = dropout_keep(dropout, tl.trans(pairs.key), tl.trans(pairs.query), BLOCK_M, BLOCK_N)
            p_dropped = tl.where(keep, p * dropout.keep_scale, 0.0)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        dv = tl.dot(tl.trans(grad_out), p_dropped.to(grad_out.dtype), dv, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dk = tl.dot(tl.trans(q), ds.to(q.dtype), dk, input_precision=PRECISION)
    else:
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        if options.HAS_BIAS:
            s += pairs.bias * LOG2E
        p = tl.exp2(s - lse[None, :])
        if MASKED:
            p = tl.where(pairs.visible, p, 0.0)
        dp = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        p_dropped = p
        if options.DROPOUT:
            keep = dropout_keep(dropout, pairs.key, pairs.query, BLOCK_N, BLOCK_M)
            p_dropped = tl.where(keep, p * dropout.keep_scale, 0.0)
            dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
        dv = tl.dot(p_dropped.to(grad_out.dtype), grad_out, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def dkdv_masked_step(column, sums, rows, position, query, m_in, bias, dropout, scale_log2, sizes, options):
    """`dkdv_step` of the queries of `m_in`, which may see a part of the keys."""
    d, d_v = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV)
    query64 = query.to(tl.int64)
    q_mask = m_in[:, None] & (d < sizes.HEAD_DIM)[None, :]
    grad_mask = m_in[:, None] & (d_v < sizes.V_HEAD_DIM)[None, :]
    q_ptrs = rows.q_base + query64[:, None] * rows.stride_qs + d[None, :] * rows.stride_qd
    grad_ptrs = rows.grad_base + query64[:, None] * rows.stride_gs + d_v[None, :] * rows.stride_gd
    q = tl.load(q_ptrs, mask=q_mask, other=0.0)
    grad_out = tl.load(grad_ptrs, mask=grad_mask, other=0.0)
    lse = load_lse(rows.lse_base, query, m_in)
    delta = tl.load(rows.delta_base + query, mask=m_in, other=0.0)
    visible = column.n_in[:, None]
    if options.IS_CAUSAL:
        visible = visible & (column.key[:, None] <= position[None, :])
    return dkdv_step(
        column, QueryValues(q, grad_out, lse, delta), sums, Pairs(column.key[:, None], query[None, :], visible, bias),
        dropout, scale_log2, True, sizes, options,
    )  # fmt: skip


@triton.jit
def dkdv_class(column, sums, rows, blocks, bias_of, dropout, scale_log2, sizes, options):
    """Add the queries of one distance class of the column's list, of one head, to dk and dv."""
    BLOCK_SIZE: tl.constexpr = sizes.BLOCK_SIZE
    BLOCK_M: tl.constexpr = sizes.BLOCK_M
    Indices, Entries, lo, hi = blocks.Indices, blocks.Entries, blocks.lo, blocks.hi
    first_row, q_offset, dk, dv = rows.first_row, rows.q_offset, sums.dk, sums.dv
    d, d_v, m = tl.arange(0, sizes.BLOCK_D), tl.arange(0, sizes.BLOCK_DV), tl.arange(0, BLOCK_M)
    q_offsets = m[:, None] * rows.stride_qs + d[None, :] * rows.stride_qd
    grad_offsets = m[:, None] * rows.stride_gs + d_v[None, :] * rows.stride_gd
    if BLOCK_SIZE >= BLOCK_M:
        TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
        # one loop for all: ptxas 12.8 gives the products of two loops an address that it never computed
        MASK_ALL: tl.constexpr = options.IS_CAUSAL and options.QUERIES_FIRST
        n_before, n_partial = 0, 0
        if options.IS_CAUSAL:  # rows before the key see nothing of it
            n_before = count_below(Indices, lo, hi, column.first_key // BLOCK_SIZE - first_row)
            n_partial = n_before
        if options.IS_CAUSAL and not MASK_ALL:  # those that cross it see a part
            past_partial = (column.last_key + BLOCK_SIZE - 1) // BLOCK_SIZE - first_row
            n_partial = count_below(Indices, lo, hi, past_partial)
            for t in tl.range(n_before * TILES_M, n_partial * TILES_M, num_stages=1):
                entry = lo + t // TILES_M
                position = (first_row + tl.load(Indices + entry)) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M + m
                query = position - q_offset
                m_in = (query >= 0) & (query < rows.q_len)
                bias = 0.0
                if options.HAS_BIAS:
                    bias = block_bias(bias_of, Entries, entry)
                dk, dv = dkdv_masked_step(
                    column, KeyGradients(dk, dv), rows, position, query, m_in, bias, dropout, scale_log2, sizes, options
                )  # fmt: skip
        for t in tl.range(n_partial * TILES_M, (hi - lo) * TILES_M):
            entry = lo + t // TILES_M
            row = tl.load(Indices + entry)
            query0 = (first_row + row) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M - q_offset
            query = query0 + m
            m_in = (query >= 0) & (query < rows.q_len)
            q_tile = rows.q_base + query0.to(tl.int64) * rows.stride_qs
            grad_tile = rows.grad_base + query0.to(tl.int64) * rows.stride_gs
            if options.EVEN_Q and (sizes.HEAD_DIM == sizes.BLOCK_D and sizes.V_HEAD_DIM == sizes.BLOCK_DV):
                q = tl.load(q_tile + q_offsets)
                grad_out = tl.load(grad_tile + grad_offsets)
            else:
                q = tl.load(q_tile + q_offsets, mask=m_in[:, None] & (d < sizes.HEAD_DIM)[None, :], other=0.0)
                grad_mask = m_in[:, None] & (d_v < sizes.V_HEAD_DIM)[None, :]
                grad_out = tl.load(grad_tile + grad_offsets, mask=grad_mask, other=0.0)
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
                Pairs(column.key[:, None], query[None, :], visible, bias), dropout, scale_log2,
                options.HAS_KEY_MASK or MASK_ALL, sizes, options,
            )  # fmt: skip
    else:  # a tile gathers the queries of several small blocks
        for t in tl.range(0, tl.cdiv((hi - lo) * BLOCK_SIZE, BLOCK_M), num_stages=1):
            entry, place, m_in = gathered_tokens(blocks, t, 0, 1, BLOCK_SIZE, BLOCK_M)
            position = first_row * BLOCK_SIZE + place
            query = position - q_offset
            bias = 0.0
            if options.HAS_BIAS:
                bias = block_biases(bias_of, Entries, entry, m_in)
            m_in = m_in & (query >= 0) & (query < rows.q_len)
            dk, dv = dkdv_masked_step(
                column,
                KeyGradients(dk, dv),
                rows,
                position,
                query,
                m_in,
                bias,
                dropout,
                scale_log2,
                sizes,
                options,
            )
    return dk, dv


@triton.jit
def dkdv_kernel(
    Q, K, V, GradOut, Lse, Delta, Offsets, Indices, Entries, Bias, KvLengths, Padding, Seed, GradK, GradV,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd, stride_gb, stride_gs, stride_gh, stride_gd,
    stride_xb, stride_xs, stride_xh, stride_xd, stride_yb, stride_ys, stride_yh, stride_yd,
    stride_bb, stride_bh, stride_be, stride_pb, stride_ps,
    q_len, kv_len, q_offset, first_row, n_cols, num_heads, softmax_scale, threshold, keep_scale,
    GROUP: tl.constexpr, HEADS_PER_LIST: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, N_CLASSES: tl.constexpr, RATES_LOG2: tl.constexpr, KEY_STRIDE: tl.constexpr,
    IS_CAUSAL: tl.constexpr, EVEN_Q: tl.constexpr, HAS_KEY_MASK: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr, HAS_PADDING: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES_FIRST: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys first + KEY_STRIDE * (0 ... BLOCK_N - 1); strides x and y are GradK's and GradV's."""
    KEYS: tl.constexpr = BLOCK_SIZE // KEY_STRIDE
    PARTS: tl.constexpr = KEY_STRIDE * ((KEYS + BLOCK_N - 1) // BLOCK_N)
    n_tiles = n_cols * PARTS
    num_kv_heads = num_heads // GROUP
    i_tile = tl.program_id(0) % n_tiles
    batch_kv_head = tl.program_id(0) // n_tiles
    i_batch, kv_head = batch_kv_head // num_kv_heads, batch_kv_head % num_kv_heads
    col = i_tile // PARTS
    residue = i_tile % PARTS % KEY_STRIDE
    within = i_tile % PARTS // KEY_STRIDE * BLOCK_N + tl.arange(0, BLOCK_N)
    key = col * BLOCK_SIZE + residue + within * KEY_STRIDE
    n_store = (within < KEYS) & (key < kv_len)
    n_in = n_store & (key < valid_keys(KvLengths, i_batch, kv_len, HAS_KV_LENGTHS))
    if HAS_PADDING:
        n_in = not_padded(KeyPadding(Padding, i_batch, stride_pb, stride_ps), key, n_in)
    first_key, last_key = tl.min(key), tl.max(key)
    d, d_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)

    key64 = key.to(tl.int64)
    k_base = K + i_batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
    v_base = V + i_batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
    k_mask = n_store[:, None] & (d < HEAD_DIM)[None, :]
    v_mask = n_store[:, None] & (d_v < V_HEAD_DIM)[None, :]
    # Padding may hold anything, and 0 * NaN is NaN.
    k_seen = n_in[:, None] & (d < HEAD_DIM)[None, :]
    v_seen = n_in[:, None] & (d_v < V_HEAD_DIM)[None, :]
    k = tl.load(k_base + key64[:, None] * stride_ks + d[None, :] * stride_kd, mask=k_seen, other=0.0)
    v = tl.load(v_base + key64[:, None] * stride_vs + d_v[None, :] * stride_vd, mask=v_seen, other=0.0)
    scale_log2 = softmax_scale * LOG2E
    dk = tl.zeros([BLOCK_D, BLOCK_N] if QUERIES_FIRST else [BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_DV, BLOCK_N] if QUERIES_FIRST else [BLOCK_N, BLOCK_DV], tl.float32)

    for i_group in range(GROUP):
        head = kv_head * GROUP + i_group
        batch_head = i_batch * num_heads + head
        q_base = Q + i_batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
        grad_base = GradOut + i_batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh
        lse_base = Lse + batch_head.to(tl.int64) * q_len
        delta_base = Delta + batch_head.to(tl.int64) * q_len
        bias_base = Bias + i_batch.to(tl.int64) * stride_bb + head.to(tl.int64) * stride_bh
        first_list = ((head // HEADS_PER_LIST) * n_cols + col) * N_CLASSES

        for i_class in tl.static_range(N_CLASSES):
            lo = tl.load(Offsets + first_list + i_class)
            hi = tl.load(Offsets + first_list + i_class + 1)
            # a head that drops this residue in this class has nothing to add
            kept = residue % (1 << ((RATES_LOG2 >> (4 * i_class)) & 15)) == head % (
                1 << ((RATES_LOG2 >> (4 * i_class)) & 15)
            )
            hi = tl.where(kept, hi, lo)
            dk, dv = dkdv_class(
                Column(k, v, key, n_in, first_key, last_key), KeyGradients(dk, dv),
                Rows(
                    q_base, grad_base, lse_base, delta_base, stride_qs, stride_qd, stride_gs, stride_gd, first_row, q_offset, q_len
                ),
                Blocks(Indices, Entries, lo, hi), BlockBias(bias_base, stride_be, bias_base),
                Dropout(Seed, batch_head, threshold, keep_scale), scale_log2,
                Sizes(HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_M, BLOCK_N),
                ColumnOptions(IS_CAUSAL, EVEN_Q, HAS_KEY_MASK, HAS_BIAS, DROPOUT, PRECISION, QUERIES_FIRST),
            )  # fmt: skip

    if QUERIES_FIRST:
        dk, dv = tl.trans(dk), tl.trans(dv)
    x_ptrs = GradK + i_batch.to(tl.int64) * stride_xb + kv_head.to(tl.int64) * stride_xh
    x_ptrs += key64[:, None] * stride_xs + d[None, :] * stride_xd
    tl.store(x_ptrs, (dk * softmax_scale).to(GradK.dtype.element_ty), mask=k_mask)
    y_ptrs = GradV + i_batch.to(tl.int64) * stride_yb + kv_head.to(tl.int64) * stride_yh
    y_ptrs += key64[:, None] * stride_ys + d_v[None, :] * stride_yd
    tl.store(y_ptrs, dv.to(GradV.dtype.element_ty), mask=v_mask)
