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

from .masking import LOG2E, count_below, dropout_keep, gathered_keys, not_padded, valid_keys


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
def dq_step(
    q, k, v, grad_out, lse, delta, dq, bias, visible, Seed, key, query, batch_head, threshold, keep_scale, scale_log2,
    MASKED: tl.constexpr, HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys (k and v as (BLOCK_N, dim)) to dq; also ds of the tile."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    if HAS_BIAS:
        s += bias * LOG2E
    p = tl.exp2(s - lse[:, None])
    if MASKED:
        p = tl.where(visible, p, 0.0)
    dp = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        keep = dropout_keep(Seed, key, query, batch_head, threshold, BLOCK_M, BLOCK_N)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION), ds


@triton.jit
def dq_class(
    q, grad_out, lse, delta, dq, k_base, v_base, bias_base, grad_bias, Indices, Entries, Padding, Seed, lo, hi,
    position0, position, query, i_batch, head, batch_head, kv_valid, threshold, keep_scale, scale_log2, stride_ks,
    stride_kd, stride_vs, stride_vd, stride_be, stride_pb, stride_ps, RATE: tl.constexpr, HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_EDGE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_PADDING: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the keys of one distance class of the row's list to dq."""
    TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
    PARTS_N: tl.constexpr = BLOCK_SIZE // BLOCK_N if BLOCK_SIZE > BLOCK_N else 1
    d, dv, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_N)
    k_offsets = n[:, None] * stride_ks + d[None, :] * stride_kd
    v_offsets = n[:, None] * stride_vs + dv[None, :] * stride_vd
    KEYS: tl.constexpr = BLOCK_SIZE // RATE
    if RATE == 1 and BLOCK_SIZE >= BLOCK_N:
        n_full, n_visible = hi - lo, hi - lo
        if HAS_EDGE:
            past_end = tl.cdiv(kv_valid, BLOCK_SIZE)
            whole_end = kv_valid // BLOCK_SIZE
            if IS_CAUSAL:
                past_end = tl.minimum(past_end, (position0 + BLOCK_M - 1) // BLOCK_SIZE + 1)
                whole_end = tl.minimum(whole_end, (position0 + 1) // BLOCK_SIZE)
            n_visible = count_below(Indices, lo, hi, past_end)
            n_full = 0 if HAS_PADDING else count_below(Indices, lo, hi, whole_end)
        for t in tl.range(0, n_full * PARTS_N):
            entry = lo + t // PARTS_N
            key0 = tl.load(Indices + entry) * BLOCK_SIZE + (t % PARTS_N) * BLOCK_N
            k_tile = k_base + key0.to(tl.int64) * stride_ks
            v_tile = v_base + key0.to(tl.int64) * stride_vs
            if HEAD_DIM == BLOCK_D:
                k = tl.load(k_tile + k_offsets)
            else:
                k = tl.load(k_tile + k_offsets, mask=(d < HEAD_DIM)[None, :], other=0.0)
            if V_HEAD_DIM == BLOCK_DV:
                v = tl.load(v_tile + v_offsets)
            else:
                v = tl.load(v_tile + v_offsets, mask=(dv < V_HEAD_DIM)[None, :], other=0.0)
            bias = 0.0
            if HAS_BIAS:
                place = tl.load(Entries + entry).to(tl.int64)
                bias = tl.load(bias_base + place * stride_be).to(tl.float32)
            dq, ds = dq_step(
                q, k, v, grad_out, lse, delta, dq, bias, True, Seed, (key0 + n)[None, :], query[:, None],
                batch_head, threshold, keep_scale, scale_log2, False, HAS_BIAS, DROPOUT, PRECISION, BLOCK_M,
                BLOCK_N,
            )  # fmt: skip
            if HAS_BIAS:
                tl.store(grad_bias + place * TILES_M * PARTS_N + t % PARTS_N, tl.sum(ds))
        if HAS_EDGE:
            for t in tl.range(n_full * PARTS_N, n_visible * PARTS_N, num_stages=1):
                entry = lo + t // PARTS_N
                key = tl.load(Indices + entry) * BLOCK_SIZE + (t % PARTS_N) * BLOCK_N + n
                n_in = key < kv_valid
                if HAS_PADDING:
                    n_in = not_padded(Padding, i_batch, stride_pb, stride_ps, key, n_in)
                visible = n_in[None, :] & (key[None, :] <= position[:, None]) if IS_CAUSAL else n_in[None, :]
                key64 = key.to(tl.int64)
                k_mask = n_in[:, None] & (d < HEAD_DIM)[None, :]
                v_mask = n_in[:, None] & (dv < V_HEAD_DIM)[None, :]
                k = tl.load(
                    k_base + key64[:, None] * stride_ks + d[None, :] * stride_kd, mask=k_mask, other=0.0
                )
                v = tl.load(
                    v_base + key64[:, None] * stride_vs + dv[None, :] * stride_vd, mask=v_mask, other=0.0
                )
                bias = 0.0
                if HAS_BIAS:
                    place = tl.load(Entries + entry).to(tl.int64)
                    bias = tl.load(bias_base + place * stride_be).to(tl.float32)
                dq, ds = dq_step(
                    q, k, v, grad_out, lse, delta, dq, bias, visible, Seed, key[None, :], query[:, None],
                    batch_head, threshold, keep_scale, scale_log2, True, HAS_BIAS, DROPOUT, PRECISION, BLOCK_M,
                    BLOCK_N,
                )  # fmt: skip
                if HAS_BIAS:
                    tl.store(grad_bias + place * TILES_M * PARTS_N + t % PARTS_N, tl.sum(ds))
    else:
        # not pipelined: see forward.py
        for t in tl.range(0, tl.cdiv((hi - lo) * KEYS, BLOCK_N), num_stages=1):
            entry, key, n_in = gathered_keys(Indices, lo, hi, t, head, RATE, BLOCK_SIZE, BLOCK_N)
            listed = n_in
            n_in = n_in & (key < kv_valid)
            bias = 0.0
            if HAS_BIAS:
                place = tl.load(Entries + entry, mask=listed, other=0).to(tl.int64)
                bias = tl.load(bias_base + place * stride_be, mask=listed, other=0.0).to(tl.float32)[None, :]
            if HAS_PADDING:
                n_in = not_padded(Padding, i_batch, stride_pb, stride_ps, key, n_in)
            visible = n_in[None, :] & (key[None, :] <= position[:, None]) if IS_CAUSAL else n_in[None, :]
            key64 = key.to(tl.int64)
            k_mask = n_in[:, None] & (d < HEAD_DIM)[None, :]
            v_mask = n_in[:, None] & (dv < V_HEAD_DIM)[None, :]
            k = tl.load(k_base + key64[:, None] * stride_ks + d[None, :] * stride_kd, mask=k_mask, other=0.0)
            v = tl.load(v_base + key64[:, None] * stride_vs + dv[None, :] * stride_vd, mask=v_mask, other=0.0)
            dq, ds = dq_step(
                q, k, v, grad_out, lse, delta, dq, bias, visible, Seed, key[None, :], query[:, None],
                batch_head, threshold, keep_scale, scale_log2, True, HAS_BIAS, DROPOUT, PRECISION, BLOCK_M,
                BLOCK_N,
            )  # fmt: skip
            if HAS_BIAS:
                if KEYS >= BLOCK_N:  # the tile lies in one entry
                    first = tl.load(Entries + lo + t * BLOCK_N // KEYS).to(tl.int64)
                    part = t % (KEYS // BLOCK_N)
                    tl.store(grad_bias + first * TILES_M * PARTS_N + part, tl.sum(ds))
                else:
                    ENTRIES: tl.constexpr = BLOCK_N // KEYS
                    sums = tl.sum(tl.reshape(tl.sum(ds, 0), [ENTRIES, KEYS]), 1)
                    e = lo + t * ENTRIES + tl.arange(0, ENTRIES)
                    where = tl.load(Entries + e, mask=e < hi, other=0).to(tl.int64)
                    tl.store(grad_bias + where * TILES_M * PARTS_N, sums, mask=e < hi)
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
            q, grad_out, lse, delta, dq, k_base, v_base, bias_base, grad_bias, Indices, Entries, Padding, Seed, lo, hi,
            position0, position, query, i_batch, head, batch_head, kv_valid, threshold, keep_scale, scale_log2,
            stride_ks, stride_kd, stride_vs, stride_vd, stride_be, stride_pb, stride_ps,
            1 << ((RATES_LOG2 >> (4 * i_class)) & 15), HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_M,
            BLOCK_N, IS_CAUSAL, HAS_EDGE, HAS_BIAS, HAS_PADDING, DROPOUT, PRECISION,
        )  # fmt: skip

    out_ptrs = GradQ + i_batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    out_ptrs += query64[:, None] * stride_os + d[None, :] * stride_od
    tl.store(out_ptrs, (dq * softmax_scale).to(GradQ.dtype.element_ty), mask=q_mask)


@triton.jit
def dkdv_step(
    q, k, v, grad_out, lse, delta, dk, dv, bias, visible, Seed, key, query, batch_head, threshold, keep_scale,
    scale_log2, MASKED: tl.constexpr, HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, QUERIES_FIRST: tl.constexpr,
):  # fmt: skip
    """Add one tile of queries (q and grad_out as (BLOCK_M, dim)) to dk and dv.

    Scores are (BLOCK_N, BLOCK_M), or with QUERIES_FIRST (BLOCK_M, BLOCK_N) and dk, dv are (dim, BLOCK_N): the first
    side of a warpgroup product is at least 64 long, which the keys that token dilation keeps are not.
    """
    if QUERIES_FIRST:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if HAS_BIAS:
            s += (tl.trans(bias) if len(bias.shape) == 2 else bias) * LOG2E
        p = tl.exp2(s - lse[:, None])
        if MASKED:
            p = tl.where(tl.trans(visible), p, 0.0)
        dp = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        p_dropped = p
        if DROPOUT:
            keep = dropout_keep(Seed, tl.trans(key), tl.trans(query), batch_head, threshold, BLOCK_M, BLOCK_N)
            p_dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        dv = tl.dot(tl.trans(grad_out), p_dropped.to(grad_out.dtype), dv, input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dk = tl.dot(tl.trans(q), ds.to(q.dtype), dk, input_precision=PRECISION)
    else:
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        if HAS_BIAS:
            s += bias * LOG2E
        p = tl.exp2(s - lse[None, :])
        if MASKED:
            p = tl.where(visible, p, 0.0)
        dp = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        p_dropped = p
        if DROPOUT:
            keep = dropout_keep(Seed, key, query, batch_head, threshold, BLOCK_N, BLOCK_M)
            p_dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        dv = tl.dot(p_dropped.to(grad_out.dtype), grad_out, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def dkdv_class(
    k, v, dk, dv, n_in, key, first_key, last_key, q_base, grad_base, lse_base, delta_base, bias_base, Indices, Entries,
    Seed, lo, hi, batch_head, first_row, q_offset, q_len, threshold, keep_scale, scale_log2, stride_qs, stride_qd,
    stride_gs, stride_gd, stride_be, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_CAUSAL: tl.constexpr, EVEN_Q: tl.constexpr, HAS_KEY_MASK: tl.constexpr, HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, QUERIES_FIRST: tl.constexpr,
):  # fmt: skip
    """Add the queries of one distance class of the column's list, of one head, to dk and dv."""
    d, d_v, m = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_M)
    q_offsets = m[:, None] * stride_qs + d[None, :] * stride_qd
    grad_offsets = m[:, None] * stride_gs + d_v[None, :] * stride_gd
    if BLOCK_SIZE >= BLOCK_M:
        TILES_M: tl.constexpr = BLOCK_SIZE // BLOCK_M
        # one loop for all: ptxas 12.8 gives the products of two loops an address that it never computed
        MASK_ALL: tl.constexpr = IS_CAUSAL and QUERIES_FIRST
        n_before, n_partial = 0, 0
        if IS_CAUSAL:  # rows before the key see nothing of it
            n_before = count_below(Indices, lo, hi, first_key // BLOCK_SIZE - first_row)
            n_partial = n_before
        if IS_CAUSAL and not MASK_ALL:  # those that cross it see a part
            n_partial = count_below(Indices, lo, hi, (last_key + BLOCK_SIZE - 1) // BLOCK_SIZE - first_row)
            for t in tl.range(n_before * TILES_M, n_partial * TILES_M, num_stages=1):
                entry = lo + t // TILES_M
                position = (first_row + tl.load(Indices + entry)) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M + m
                query = position - q_offset
                m_in = (query >= 0) & (query < q_len)
                query64 = query.to(tl.int64)
                q_mask = m_in[:, None] & (d < HEAD_DIM)[None, :]
                grad_mask = m_in[:, None] & (d_v < V_HEAD_DIM)[None, :]
                q_ptrs = q_base + query64[:, None] * stride_qs + d[None, :] * stride_qd
                grad_ptrs = grad_base + query64[:, None] * stride_gs + d_v[None, :] * stride_gd
                q = tl.load(q_ptrs, mask=q_mask, other=0.0)
                grad_out = tl.load(grad_ptrs, mask=grad_mask, other=0.0)
                lse = load_lse(lse_base, query, m_in)
                delta = tl.load(delta_base + query, mask=m_in, other=0.0)
                bias = 0.0
                if HAS_BIAS:
                    bias = tl.load(bias_base + tl.load(Entries + entry).to(tl.int64) * stride_be).to(
                        tl.float32
                    )
                visible = n_in[:, None] & (key[:, None] <= position[None, :])
                dk, dv = dkdv_step(
                    q, k, v, grad_out, lse, delta, dk, dv, bias, visible, Seed, key[:, None], query[None, :],
                    batch_head, threshold, keep_scale, scale_log2, True, HAS_BIAS, DROPOUT, PRECISION,
                    BLOCK_M, BLOCK_N, QUERIES_FIRST,
                )  # fmt: skip
        for t in tl.range(n_partial * TILES_M, (hi - lo) * TILES_M):
            entry = lo + t // TILES_M
            row = tl.load(Indices + entry)
            query0 = (first_row + row) * BLOCK_SIZE + (t % TILES_M) * BLOCK_M - q_offset
            query = query0 + m
            m_in = (query >= 0) & (query < q_len)
            q_tile = q_base + query0.to(tl.int64) * stride_qs
            grad_tile = grad_base + query0.to(tl.int64) * stride_gs
            if EVEN_Q and HEAD_DIM == BLOCK_D and V_HEAD_DIM == BLOCK_DV:
                q = tl.load(q_tile + q_offsets)
                grad_out = tl.load(grad_tile + grad_offsets)
            else:
                q = tl.load(q_tile + q_offsets, mask=m_in[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
                grad_mask = m_in[:, None] & (d_v < V_HEAD_DIM)[None, :]
                grad_out = tl.load(grad_tile + grad_offsets, mask=grad_mask, other=0.0)
            lse = load_lse(lse_base, query, m_in)
            delta = tl.load(delta_base + query, mask=m_in, other=0.0)
            bias = 0.0
            if HAS_BIAS:
                bias = tl.load(bias_base + tl.load(Entries + entry).to(tl.int64) * stride_be).to(tl.float32)
            visible = n_in[:, None]
            if MASK_ALL:
                visible = visible & (key[:, None] <= (query + q_offset)[None, :])
            dk, dv = dkdv_step(
                q, k, v, grad_out, lse, delta, dk, dv, bias, visible, Seed, key[:, None],
                query[None, :], batch_head, threshold, keep_scale, scale_log2, HAS_KEY_MASK or MASK_ALL, HAS_BIAS,
                DROPOUT, PRECISION, BLOCK_M, BLOCK_N, QUERIES_FIRST,
            )  # fmt: skip
    else:  # a tile gathers the queries of several small blocks
        for t in tl.range(0, tl.cdiv((hi - lo) * BLOCK_SIZE, BLOCK_M), num_stages=1):
            entry, place, m_in = gathered_keys(Indices, lo, hi, t, 0, 1, BLOCK_SIZE, BLOCK_M)
            position = first_row * BLOCK_SIZE + place
            query = position - q_offset
            bias = 0.0
            if HAS_BIAS:
                e = tl.load(Entries + entry, mask=m_in, other=0).to(tl.int64)
                bias = tl.load(bias_base + e * stride_be, mask=m_in, other=0.0).to(tl.float32)[None, :]
            m_in = m_in & (query >= 0) & (query < q_len)
            query64 = query.to(tl.int64)
            q_mask = m_in[:, None] & (d < HEAD_DIM)[None, :]
            grad_mask = m_in[:, None] & (d_v < V_HEAD_DIM)[None, :]
            q_ptrs = q_base + query64[:, None] * stride_qs + d[None, :] * stride_qd
            grad_ptrs = grad_base + query64[:, None] * stride_gs + d_v[None, :] * stride_gd
            q = tl.load(q_ptrs, mask=q_mask, other=0.0)
            grad_out = tl.load(grad_ptrs, mask=grad_mask, other=0.0)
            lse = load_lse(lse_base, query, m_in)
            delta = tl.load(delta_base + query, mask=m_in, other=0.0)
            visible = n_in[:, None] & (key[:, None] <= position[None, :]) if IS_CAUSAL else n_in[:, None]
            dk, dv = dkdv_step(
                q, k, v, grad_out, lse, delta, dk, dv, bias, visible, Seed, key[:, None], query[None, :],
                batch_head, threshold, keep_scale, scale_log2, True, HAS_BIAS, DROPOUT, PRECISION,
                BLOCK_M, BLOCK_N, QUERIES_FIRST,
            )  # fmt: skip
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
        n_in = not_padded(Padding, i_batch, stride_pb, stride_ps, key, n_in)
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
                k, v, dk, dv, n_in, key, first_key, last_key, q_base, grad_base, lse_base, delta_base, bias_base, Indices,
                Entries, Seed, lo, hi, batch_head, first_row, q_offset, q_len, threshold, keep_scale, scale_log2,
                stride_qs, stride_qd, stride_gs, stride_gd, stride_be, HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV,
                BLOCK_SIZE, BLOCK_M, BLOCK_N, IS_CAUSAL, EVEN_Q, HAS_KEY_MASK, HAS_BIAS, DROPOUT, PRECISION, QUERIES_FIRST,
            )  # fmt: skip

    if QUERIES_FIRST:
        dk, dv = tl.trans(dk), tl.trans(dv)
    x_ptrs = GradK + i_batch.to(tl.int64) * stride_xb + kv_head.to(tl.int64) * stride_xh
    x_ptrs += key64[:, None] * stride_xs + d[None, :] * stride_xd
    tl.store(x_ptrs, (dk * softmax_scale).to(GradK.dtype.element_ty), mask=k_mask)
    y_ptrs = GradV + i_batch.to(tl.int64) * stride_yb + kv_head.to(tl.int64) * stride_yh
    y_ptrs += key64[:, None] * stride_ys + d_v[None, :] * stride_yd
    tl.store(y_ptrs, dv.to(GradV.dtype.element_ty), mask=v_mask)
