"""Decoding kernels: a few queries against a long cache, whose keys are shared out among programs.

Split-KV attention (Flash-Decoding, Dao et al. 2023) over the list of the queries' row:
    decode_kernel    the heads that share a kv head, times the queries, are the rows of one product; a program walks its
                     share of the list with an online softmax, and writes its part: out, and lse in units of log2
    combine_kernel   out = sum of 2^(lse - max) out_i / sum of 2^(lse - max), in a fixed order
The row is found on the device, from the length of the cache, so that one launch, and one CUDA graph, serves every step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masking import LN2, LOG2E
from .scores import tanh


@triton.jit
def with_sink(m, l, sink, HAS_SINKS: tl.constexpr):
    """What sums are multiplied by to give out, and lse in units of log2; `l` and `m` as of an online softmax."""
    empty = l == 0.0
    if HAS_SINKS:
        top = tl.maximum(m, sink)
        share = tl.where(empty, 0.0, tl.exp2(m - top))
        total = l * share + tl.exp2(sink - top)
    else:
        top, share, total = m, tl.where(empty, 0.0, 1.0), tl.where(empty, 1.0, l)
    return share / total, tl.where(empty, float("-inf"), top + tl.log2(total))


@triton.jit
def list_of_row(Offsets, first_list, row, n_rows):
    """Begin and length of the list of a row, which may not be in the layout."""
    inside = (row >= 0) & (row < n_rows)
    lo = tl.load(Offsets + first_list + row, mask=inside, other=0)
    hi = tl.load(Offsets + first_list + row + 1, mask=inside, other=0)
    return lo, hi - lo


@triton.jit
def entry_of_tile(t, lo, lo_before, n_before, TILES_N: tl.constexpr, TWO_ROWS: tl.constexpr):
    """The place in the lists of tile t; those of the row before come first."""
    i_entry = t // TILES_N
    entry = lo + i_entry
    if TWO_ROWS:
        entry = tl.where(i_entry < n_before, lo_before + i_entry, entry - n_before)
    return entry


@triton.jit
def page_of_tile(
    table, stride_tp, key0, start, n_keys, num_pages, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    IS_IN_ONE_PAGE: tl.constexpr,
):  # fmt: skip
    """The page of a tile of keys, or of each of them; a page of the cache also where the table holds no such number."""
    if IS_IN_ONE_PAGE:
        page = tl.load(table + (key0 // PAGE_SIZE) * stride_tp, mask=key0 < n_keys, other=0)
    else:
        key = key0 + tl.arange(0, BLOCK_N)
        page = tl.load(table + ((start + key) // PAGE_SIZE) * stride_tp, mask=key < n_keys, other=0)
    return tl.minimum(tl.maximum(page, 0), num_pages - 1)


@triton.jit
def words_of_tile(
    Entries,
    MaskIds,
    MaskTable,
    entry,
    inside,
    key0,
    position,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The words of the mask that hold the bits of a tile, (queries, BLOCK_N); all ones where its block has no mask."""
    WORDS: tl.constexpr = (BLOCK_SIZE + 31) // 32
    block = tl.load(Entries + entry, mask=inside, other=0)
    mask_id = tl.load(MaskIds + block, mask=inside, other=-1)
    line = tl.maximum(mask_id, 0) * BLOCK_SIZE + tl.maximum(position, 0) % BLOCK_SIZE
    word = ((key0 + tl.arange(0, BLOCK_N)) % BLOCK_SIZE) // 32
    # not an & with a scalar, of which the interpreter of 3.9 makes bytes
    has_mask = tl.minimum(position[:, None], tl.minimum(word[None, :], mask_id)) >= 0
    return tl.load(MaskTable + line[:, None] * WORDS + word[None, :], mask=has_mask, other=-1)


# What the kernels are not compiled anew for: sizes of caches and layouts, and numbers of heads and shares.
UNSPECIALISED = ("lists_per_element", "max_len", "num_pages", "num_heads", "first_row", "n_rows", "n_splits")


@triton.jit(do_not_specialize=UNSPECIALISED)
def decode_kernel(
    Q, K, V, Out, Lse, CacheLengths, BlockTable, KvStarts, Slopes, Sinks, Offsets, Indices, Entries, MaskIds, MaskTable,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd, stride_lengths, stride_tb, stride_tp, stride_starts, stride_slopes,
    stride_sinks, lists_per_element, q_len, max_len, num_pages, num_heads, first_row, n_rows, n_splits, softmax_scale,
    softcap,
    GROUP: tl.constexpr, PACK: tl.constexpr, HEADS_PER_LIST: tl.constexpr, HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr, HAS_STARTS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_MASKS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    TWO_ROWS: tl.constexpr, IS_SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One share of the keys of one tile of queries; see the top of this file.

    PACK heads, which share their list and kv head, are one tile with all queries. PAGE_SIZE 0 is a contiguous cache.
    """
    TILES_N: tl.constexpr = BLOCK_SIZE // BLOCK_N
    IS_IN_ONE_PAGE: tl.constexpr = PAGE_SIZE != 0 and PAGE_SIZE % BLOCK_N == 0 and not HAS_STARTS
    ADD_SINKS: tl.constexpr = HAS_SINKS and not IS_SPLIT
    n_tiles = tl.cdiv(q_len * PACK, BLOCK_M)
    n_packs = num_heads // PACK
    # the heads of a token are next to each other in memory: programs that run together read them together
    i_pack = tl.program_id(0) % n_packs
    rest = tl.program_id(0) // n_packs
    i_tile = rest % n_tiles
    i_split = (rest // n_tiles) % n_splits
    i_batch = rest // n_tiles // n_splits
    batch64 = i_batch.to(tl.int64)

    m_place = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query, head = m_place // PACK, i_pack * PACK + m_place % PACK
    m_in = query < q_len
    head0 = i_pack * PACK
    d, dv, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_N)

    length = tl.load(CacheLengths + batch64 * stride_lengths)
    end = tl.minimum(tl.maximum(length, 0), max_len)
    start = tl.full([], 0, tl.int32)
    if HAS_STARTS:
        start = tl.minimum(tl.maximum(tl.load(KvStarts + batch64 * stride_starts), 0), end)
    n_keys = end - start
    first_position = length - start - q_len
    position = first_position + query

    # the last query's list, and with several queries that of the first before it
    first_list = i_batch * lists_per_element + (head0 // HEADS_PER_LIST) * n_rows
    last_position = first_position + q_len - 1
    last_block = tl.where(last_position < 0, -1, last_position // BLOCK_SIZE)
    lo, n_entries = list_of_row(Offsets, first_list, last_block - first_row, n_rows)
    n_before, lo_before = 0, 0
    if TWO_ROWS:
        block_before = tl.maximum(first_position, 0) // BLOCK_SIZE
        lo_before, n_before = list_of_row(Offsets, first_list, block_before - first_row, n_rows)
        n_before = tl.where(block_before < last_block, n_before, 0)
    n_total = (n_before + n_entries) * TILES_N
    share = tl.cdiv(n_total, n_splits)
    t_begin = i_split * share
    t_end = tl.minimum(t_begin + share, n_total)

    q_ptrs = Q + batch64 * stride_qb + query[:, None].to(tl.int64) * stride_qs + head[:, None] * stride_qh
    q = tl.load(q_ptrs + d[None, :] * stride_qd, mask=m_in[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    slope = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SLOPES:
        slope = tl.load(Slopes + head * stride_slopes, mask=m_in, other=0.0).to(tl.float32) * LOG2E
    kv_head = (head0 // GROUP).to(tl.int64)
    k_base = K + kv_head * stride_kh + d[:, None] * stride_kd
    v_base = V + kv_head * stride_vh + dv[None, :] * stride_vd
    if PAGE_SIZE == 0:
        k_base += batch64 * stride_kb
        v_base += batch64 * stride_vb
        if HAS_STARTS:
            k_base += start.to(tl.int64) * stride_ks
            v_base += start.to(tl.int64) * stride_vs
    table = BlockTable + batch64 * stride_tb

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    # The place of a tile is loaded one tile ahead, into registers. Triton would copy it to shared memory as it does the keys,
    # and version 3.6 then made masks from that of another tile.
    entry = entry_of_tile(t_begin, lo, lo_before, n_before, TILES_N, TWO_ROWS)
    col = tl.load(Indices + entry, mask=t_begin < t_end, other=0)
    key0 = col * BLOCK_SIZE + (t_begin % TILES_N) * BLOCK_N
    page, word = key0, key0
    if PAGE_SIZE != 0:
        page = page_of_tile(
            table, stride_tp, key0, start, n_keys, num_pages, PAGE_SIZE, BLOCK_N, IS_IN_ONE_PAGE
        )
    if HAS_MASKS:
        word = words_of_tile(
            Entries, MaskIds, MaskTable, entry, t_begin < t_end, key0, position, BLOCK_SIZE, BLOCK_N
        )
    for t in range(t_begin, t_end):
        key = key0 + n
        n_in = key < n_keys
        if PAGE_SIZE == 0:
            k_ptrs = k_base + key[None, :].to(tl.int64) * stride_ks
            v_ptrs = v_base + key[:, None].to(tl.int64) * stride_vs
        elif IS_IN_ONE_PAGE:
            token = key0 % PAGE_SIZE + n
            k_ptrs = k_base + page.to(tl.int64) * stride_kb + token[None, :] * stride_ks
            v_ptrs = v_base + page.to(tl.int64) * stride_vb + token[:, None] * stride_vs
        else:
            token = (start + key) % PAGE_SIZE
            k_ptrs = k_base + (page.to(tl.int64) * stride_kb + token * stride_ks)[None, :]
            v_ptrs = v_base + (page.to(tl.int64) * stride_vb + token * stride_vs)[:, None]
        k_mask, v_mask = n_in[None, :], n_in[:, None]
        if HEAD_DIM != BLOCK_D:
            k_mask = k_mask & (d < HEAD_DIM)[:, None]
        if V_HEAD_DIM != BLOCK_DV:
            v_mask = v_mask & (dv < V_HEAD_DIM)[None, :]
        k = tl.load(k_ptrs, mask=k_mask, other=0.0)
        v = tl.load(v_ptrs, mask=v_mask, other=0.0)

        visible = n_in[None, :] & (key[None, :] <= position[:, None])
        if TWO_ROWS:
            is_before = t // TILES_N < n_before
            visible = visible & ((position // BLOCK_SIZE < last_block) == is_before)[:, None]
        if HAS_MASKS:
            visible = visible & (((word >> (key % BLOCK_SIZE % 32)[None, :]) & 1) != 0)

        s = tl.dot(q, k, input_precision=PRECISION)
        if HAS_SOFTCAP:
            s = tanh(s * (softmax_scale / softcap), True) * (softcap * LOG2E)
        else:
            s = s * (softmax_scale * LOG2E)
        if HAS_SLOPES:
            s -= slope[:, None] * (position[:, None] - key[None, :]).to(tl.float32)
        s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # a query that has seen no key yet
        p = tl.exp2(s - m_safe[:, None])
        alpha = tl.exp2(m - m_safe)
        l = l * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new

        after = t + 1
        entry = entry_of_tile(after, lo, lo_before, n_before, TILES_N, TWO_ROWS)
        col = tl.load(Indices + entry, mask=after < t_end, other=0)
        key0 = col * BLOCK_SIZE + (after % TILES_N) * BLOCK_N
        page, word = key0, key0
        if PAGE_SIZE != 0:
            page = page_of_tile(
                table, stride_tp, key0, start, n_keys, num_pages, PAGE_SIZE, BLOCK_N, IS_IN_ONE_PAGE
            )
        if HAS_MASKS:
            word = words_of_tile(
                Entries, MaskIds, MaskTable, entry, after < t_end, key0, position, BLOCK_SIZE, BLOCK_N
            )

    sink = tl.zeros([BLOCK_M], tl.float32)
    if ADD_SINKS:
        sink = tl.load(Sinks + head * stride_sinks, mask=m_in, other=0.0).to(tl.float32) * LOG2E
    factor, lse = with_sink(m, l, sink, ADD_SINKS)
    out = acc * factor[:, None]
    place = ((batch64 * n_splits + i_split) * q_len + query) * num_heads + head
    out_ptrs = Out + place[:, None] * V_HEAD_DIM + dv[None, :]
    out_mask = m_in[:, None] & (dv < V_HEAD_DIM)[None, :]
    if IS_SPLIT:  # what has no keys is not read
        tl.store(out_ptrs, out, mask=out_mask & (l > 0.0)[:, None])
        tl.store(Lse + place, lse, mask=m_in)
    else:
        tl.store(out_ptrs, out.to(Out.dtype.element_ty), mask=out_mask)
        tl.store(Lse + (batch64 * num_heads + head) * q_len + query, lse * LN2, mask=m_in)


@triton.jit(do_not_specialize=UNSPECIALISED)
def combine_kernel(
    Out, Lse, PartOut, PartLse, Sinks, stride_sinks, q_len, num_heads, n_splits, V_HEAD_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One query of one head: the parts of all splits, in one sum."""
    token, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    i_batch, query = (token // q_len).to(tl.int64), token % q_len
    split, dv = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DV)
    place = ((i_batch * n_splits + split) * q_len + query) * num_heads + head
    part_lse = tl.load(PartLse + place, mask=split < n_splits, other=float("-inf"))
    m = tl.max(part_lse, 0)
    weight = tl.exp2(part_lse - tl.where(m == float("-inf"), 0.0, m))
    is_read = (weight > 0.0)[:, None] & (dv < V_HEAD_DIM)[None, :]
    part = tl.load(PartOut + place[:, None] * V_HEAD_DIM + dv[None, :], mask=is_read, other=0.0)
    sink = 0.0
    if HAS_SINKS:
        sink = tl.load(Sinks + head * stride_sinks).to(tl.float32) * LOG2E
    factor, lse = with_sink(m, tl.sum(weight, 0), sink, HAS_SINKS)
    out = tl.sum(part * weight[:, None], 0) * factor
    out_ptrs = Out + ((i_batch * q_len + query) * num_heads + head) * V_HEAD_DIM + dv
    tl.store(out_ptrs, out.to(Out.dtype.element_ty), mask=dv < V_HEAD_DIM)
    tl.store(Lse + (i_batch * num_heads + head) * q_len + query, lse * LN2)
