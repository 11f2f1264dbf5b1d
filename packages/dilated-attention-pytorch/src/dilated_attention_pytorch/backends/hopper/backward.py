"""Backward kernel for Hopper: one pass over the columns, five products, deterministic.

A program takes a column of the layout: its k and v stay in shared memory, its dk and dv in registers, and the queries
of its list stream by (Shah et al., FlashAttention-3, arXiv:2407.08608, section 3.1). For 64 or 128 of them at a time:
    s' = k q'; p' = exp(s' - lse); dv += p' grad_out;   dp' = v grad_out'; ds' = p' * (dp' - delta); dk += ds' q
    dq = ds k, added to a float32 tile in global memory
Columns are taken in ascending order, and a row's tile is added to in that order too: a counter per tile says whose
turn it is. The first column stores instead of adding, the last one adds what is there to its own and writes dq, so
the tiles need neither zeroing nor a second pass, and a few heads' worth of them is enough: a tile is used again when
its row is done. Rows are walked downwards, so that a column comes to a row after its left neighbour did.

    loader (one warp)      takes columns from a counter, loads k, v, then q, grad_out, lse and delta of every step
    gate (one warp)        waits for the turn of every step, a few steps ahead, and says what to do with its dq
    passer (one warp)      passes the turn on when dq is added
    the other warps        compute
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .schedule import next_tile, shared_tile
from .turns import FIRST, LAST, Bars, column_place, gate, number_at, passer

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def load_queries(desc, boxes, full, stage, i_batch, head, query0, BLOCK_M: gl.constexpr, D: gl.constexpr):
    """Fill a stage of q or grad_out."""
    mbarrier.expect(full, BLOCK_M * D * 2)
    for piece in gl.static_range(D // 64):
        tma.async_copy_global_to_shared(
            desc, [i_batch, head, query0, piece * 64], full, boxes.index(stage * (D // 64) + piece)
        )


@gluon.jit
def loader(
    desc_q, desc_k, desc_v, desc_grad, q_smem, k_smem, v_smem, grad_smem, lse_smem, delta_smem, row_smem, steps_smem,
    tile_smem, bars, Offsets, Indices, Stats, Counter, n_tiles, n_rows, n_cols, num_heads, num_kv_heads, heads_per_kv,
    heads_per_list, first_row, q_offset, D: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    STAGES: gl.constexpr, KV_STAGES: gl.constexpr,
):  # fmt: skip
    """Loads k and v of a column, then q, grad_out, lse and delta of its queries, 64 columns of head_dim a box."""
    SUB: gl.constexpr = BLOCK_SIZE // BLOCK_M
    PIECES: gl.constexpr = D // 64
    q_boxes = q_smem._reinterpret(desc_q.dtype, [STAGES * PIECES, 1, 1, BLOCK_M, 64], desc_q.layout)
    grad_boxes = grad_smem._reinterpret(desc_q.dtype, [STAGES * PIECES, 1, 1, BLOCK_M, 64], desc_grad.layout)
    k_boxes = k_smem._reinterpret(desc_q.dtype, [KV_STAGES * PIECES, 1, 1, BLOCK_SIZE, 64], desc_k.layout)
    v_boxes = v_smem._reinterpret(desc_q.dtype, [KV_STAGES * PIECES, 1, 1, BLOCK_SIZE, 64], desc_v.layout)
    lanes: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    m = gl.arange(0, BLOCK_M, layout=lanes)
    it = 0
    i_tile = 0
    tile = next_tile(Counter, n_tiles, tile_smem, bars.tile_full, bars.tile_empty, i_tile)
    while tile < n_tiles:
        i_batch, kv_head, first_head, col = column_place(
            tile, n_cols, num_kv_heads, heads_per_kv, heads_per_list
        )
        slot = i_tile % KV_STAGES
        n_steps = 0
        for g in range(heads_per_kv):
            this_list = ((first_head + g) // heads_per_list) * n_cols + col
            n_steps += (gl.load(Offsets + this_list + 1) - gl.load(Offsets + this_list)) * SUB
        mbarrier.wait(bars.kv_empty.index(slot), ((i_tile // KV_STAGES) & 1) ^ 1)
        steps_smem.index(slot).store(gl.full([1], n_steps, gl.int32, layout=lanes))
        mbarrier.arrive(bars.kv_full.index(slot), count=1)
        mbarrier.expect(bars.kv_full.index(slot), 2 * BLOCK_SIZE * D * 2)
        for piece in gl.static_range(PIECES):
            where = [i_batch, kv_head, col * BLOCK_SIZE, piece * 64]
            tma.async_copy_global_to_shared(
                desc_k, where, bars.kv_full.index(slot), k_boxes.index(slot * PIECES + piece)
            )
            tma.async_copy_global_to_shared(
                desc_v, where, bars.kv_full.index(slot), v_boxes.index(slot * PIECES + piece)
            )
        for g in range(heads_per_kv):
            head = first_head + g
            this_list = (head // heads_per_list) * n_cols + col
            lo = gl.load(Offsets + this_list)
            hi = gl.load(Offsets + this_list + 1)
            for i in range(hi - lo):
                row = gl.load(Indices + hi - 1 - i)
                for j in gl.static_range(SUB):
                    sub = SUB - 1 - j
                    stage = it % STAGES
                    query0 = (first_row + row) * BLOCK_SIZE + sub * BLOCK_M - q_offset
                    mbarrier.wait(bars.empty.index(stage), ((it // STAGES) & 1) ^ 1)
                    load_queries(
                        desc_q, q_boxes, bars.q_full.index(stage), stage, i_batch, head, query0, BLOCK_M, D
                    )
                    load_queries(
                        desc_grad,
                        grad_boxes,
                        bars.grad_full.index(stage),
                        stage,
                        i_batch,
                        head,
                        query0,
                        BLOCK_M,
                        D,
                    )
                    stats = (
                        Stats
                        + ((i_batch * num_heads + head).to(gl.int64) * n_rows * SUB + row * SUB + sub)
                        * 2
                        * BLOCK_M
                    )
                    lse_smem.index(stage).store(gl.load(stats + m))
                    delta_smem.index(stage).store(gl.load(stats + BLOCK_M + m))
                    row_smem.index(stage).store(gl.full([1], row * SUB + sub, gl.int32, layout=lanes))
                    mbarrier.arrive(bars.stats_full.index(stage), count=1)
                    it += 1
        i_tile += 1
        tile = next_tile(Counter, n_tiles, tile_smem, bars.tile_full, bars.tile_empty, i_tile)


@gluon.jit
def here(number):
    """The same number, not known before this place: what follows from it is computed here, not kept in registers."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def scratch_places(
    BLOCK_M: gl.constexpr, D: gl.constexpr, WARPS_M: gl.constexpr, WARPS_N: gl.constexpr, layout: gl.constexpr
):
    """Where the four neighbouring accumulator registers of a thread lie in a tile of float32 dq: side by side."""
    m = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))[:, None] + here(0)
    d = gl.arange(0, D, layout=gl.SliceLayout(0, layout))[None, :]
    WIDTH: gl.constexpr = D // WARPS_N
    lane = (m & 7) * 4 + ((d >> 1) & 3)
    warp = (m >> 4) + WARPS_M * (d // WIDTH)
    return lane + 32 * (warp + WARPS_M * WARPS_N * ((d % WIDTH) >> 3))


@gluon.jit
def add_dq(
    dq, Tile, GradQ, stride_xs, mode, softmax_scale, query0, q_len, BLOCK_M: gl.constexpr, D: gl.constexpr,
    WARPS_M: gl.constexpr, WARPS_N: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Store, add or finish one tile of dq."""
    base = Tile.to(gl.int64, bitcast=True)
    places = 16 * scratch_places(BLOCK_M, D, WARPS_M, WARPS_N, layout)  # bytes; one for four registers
    if mode == 0:
        gl.inline_asm_elementwise(
            "{ .reg .b64 p; cvt.u64.u32 p, $8; add.u64 p, p, $4; red.relaxed.gpu.global.add.v4.f32 [p], {$12, $13, $14, $15}; "
            "mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; }",
            "=r,=r,=r,=r,l,l,l,l,r,r,r,r,f,f,f,f", [base, places, dq], dtype=gl.int32, is_pure=False, pack=4,
        )  # fmt: skip
    elif mode == FIRST:
        gl.inline_asm_elementwise(
            "{ .reg .b64 p; cvt.u64.u32 p, $8; add.u64 p, p, $4; st.relaxed.gpu.global.v4.f32 [p], {$12, $13, $14, $15}; "
            "mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; }",
            "=r,=r,=r,=r,l,l,l,l,r,r,r,r,f,f,f,f", [base, places, dq], dtype=gl.int32, is_pure=False, pack=4,
        )  # fmt: skip
    else:
        if mode == LAST:
            dq = gl.inline_asm_elementwise(
                "{ .reg .b64 p; .reg .f32 a, b, c, d; cvt.u64.u32 p, $8; add.u64 p, p, $4; "
                "ld.relaxed.gpu.global.v4.f32 {a, b, c, d}, [p]; "
                "add.f32 $0, a, $12; add.f32 $1, b, $13; add.f32 $2, c, $14; add.f32 $3, d, $15; }",
                "=f,=f,=f,=f,l,l,l,l,r,r,r,r,f,f,f,f", [base, places, dq], dtype=gl.float32, is_pure=False, pack=4,
            )  # fmt: skip
        query = here(query0) + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))
        d = here(0) + gl.arange(0, D, layout=gl.SliceLayout(0, layout))
        ptrs = GradQ + query.to(gl.int64)[:, None] * stride_xs + d[None, :]
        inside = ((query >= 0) & (query < q_len))[:, None]
        gl.store(ptrs, (dq * softmax_scale).to(GradQ.dtype.element_ty), mask=inside & (d >= 0)[None, :])


@gluon.jit
def scores(a, b, N: gl.constexpr, BLOCK_M: gl.constexpr, layout: gl.constexpr):
    """a (N, D) times b (BLOCK_M, D) transposed, in flight."""
    zero = gl.zeros([N, BLOCK_M], gl.float32, layout=layout)
    return warpgroup_mma(a, b.permute([1, 0]), zero, use_acc=False, is_async=True)


@gluon.jit
def weights(
    s, ds_smem, dv, k_smem, v_smem, slot, q_tiles, grad_tiles, lse_smem, delta_smem, row_smem, bars, it, col,
    softmax_scale, first_row, kv_len, BLOCK_M: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, PREFETCH: gl.constexpr,
    s_layout: gl.constexpr, dkv_layout: gl.constexpr,
):  # fmt: skip
    """Puts ds of step `it` into shared memory and adds p' grad_out to dv, in flight. With PREFETCH the scores are there."""
    dtype: gl.constexpr = k_smem.dtype
    operand: gl.constexpr = gl.DotOperandLayout(0, dkv_layout, 2)
    slot = here(slot)
    stage = it % STAGES
    phase = (it // STAGES) & 1
    if not PREFETCH:
        mbarrier.wait(bars.q_full.index(stage), phase)
        s = scores(k_smem.index(slot), q_tiles.index(stage), BLOCK_SIZE, BLOCK_M, s_layout)
    mbarrier.wait(bars.stats_full.index(stage), phase)
    dp = gl.zeros([BLOCK_SIZE, BLOCK_M], gl.float32, layout=s_layout)
    if PREFETCH:  # nothing runs yet: the product is added to -delta, which then needs no registers of its own
        dp += delta_smem.index(stage).load(gl.SliceLayout(0, s_layout))[None, :]
    mbarrier.wait(bars.grad_full.index(stage), phase)
    grad_tile = grad_tiles.index(stage)
    dp = warpgroup_mma(v_smem.index(slot), grad_tile.permute([1, 0]), dp, use_acc=PREFETCH, is_async=True)
    lse = lse_smem.index(stage).load(gl.SliceLayout(0, s_layout))
    if not PREFETCH:
        s = warpgroup_mma_wait(1, deps=[s])
    p = gl.exp2(s * (softmax_scale * LOG2E) - lse[None, :])
    if IS_CAUSAL or not EVEN_KV:
        key0 = col * BLOCK_SIZE
        query0 = first_row * BLOCK_SIZE + number_at(row_smem, stage) * BLOCK_M
        limit = kv_len
        if IS_CAUSAL:
            limit = gl.minimum(kv_len, query0 + 1)
        if key0 + BLOCK_SIZE > limit:
            key = here(key0) + gl.arange(0, BLOCK_SIZE, layout=gl.SliceLayout(1, s_layout))
            visible = (key < kv_len)[:, None]
            if IS_CAUSAL:
                query = here(query0) + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, s_layout))
                visible = visible & (key[:, None] <= query[None, :])
            p = gl.where(visible, p, 0.0)
    dv = warpgroup_mma(gl.convert_layout(p.to(dtype), operand), grad_tile, dv, is_async=True)
    dp = warpgroup_mma_wait(1, deps=[dp])
    if not PREFETCH:
        dp += delta_smem.index(stage).load(gl.SliceLayout(0, s_layout))[None, :]
    ds = (p * dp).to(dtype)
    ds_smem.store(ds)
    fence_async_shared()
    return gl.convert_layout(ds, operand), dv


@gluon.jit
def gradients(
    ds, dk, dv, k_smem, slot, q_tiles, ds_smem, row_smem, turn_smem, bars, it, has_next, i_batch, Scratch, GradQ, stride_xb,
    stride_xs, stride_xh, softmax_scale, first_row, q_offset, q_len, D: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, WARPS_M: gl.constexpr, WARPS_N: gl.constexpr,
    PREFETCH: gl.constexpr, GATES: gl.constexpr, s_layout: gl.constexpr, dq_layout: gl.constexpr,
):  # fmt: skip
    """Adds dq and ds' q of step `it`, and with PREFETCH makes the scores of the next one meanwhile.

    Nothing is in flight on return: ptxas serialises all products of a loop over whose closing one of them runs.
    """
    slot = here(slot)
    stage = it % STAGES
    k_tile = k_smem.index(slot)
    zero = gl.zeros([BLOCK_M, D], gl.float32, layout=dq_layout)
    dq = warpgroup_mma(ds_smem.permute([1, 0]), k_tile, zero, use_acc=False, is_async=True)
    dk = warpgroup_mma(ds, q_tiles.index(stage), dk, is_async=True)
    s = gl.zeros([BLOCK_SIZE, BLOCK_M], gl.float32, layout=s_layout)
    if PREFETCH:
        dv = warpgroup_mma_wait(2, deps=[dv])  # frees the registers of p for the next scores
        stage_next = (it + 1) % STAGES
        # after the last step of a list the scores of whatever is there: they are not used
        mbarrier.wait(bars.q_full.index(stage_next), ((it + 1) // STAGES) & 1, pred=has_next)
        s = scores(k_tile, q_tiles.index(stage_next), BLOCK_SIZE, BLOCK_M, s_layout)
        dq = warpgroup_mma_wait(2, deps=[dq])
    else:
        dv, dq = warpgroup_mma_wait(1, deps=[dv, dq])
    i_rows = number_at(row_smem, stage)
    place = it % GATES
    mbarrier.wait(bars.gate_full.index(place), (it // GATES) & 1)
    add_dq(
        dq, Scratch + number_at(turn_smem, place * 4 + 1).to(gl.int64) * (BLOCK_M * D),
        GradQ + i_batch.to(gl.int64) * stride_xb + number_at(turn_smem, place * 4 + 2).to(gl.int64) * stride_xh, stride_xs,
        number_at(turn_smem, place * 4), softmax_scale, first_row * BLOCK_SIZE + i_rows * BLOCK_M - q_offset, q_len,
        BLOCK_M, D, WARPS_M, WARPS_N, dq_layout,
    )  # fmt: skip
    if PREFETCH:
        dk, s = warpgroup_mma_wait(0, deps=[dk, s])
    else:
        dk = warpgroup_mma_wait(0, deps=[dk])
    mbarrier.arrive(bars.gate_done.index(place), count=1)
    mbarrier.arrive(bars.empty.index(stage), count=1)
    return dk, dv, s


@gluon.jit
def compute(
    desc_dk, desc_dv, q_smem, k_smem, v_smem, grad_smem, ds_smem, lse_smem, delta_smem, row_smem, turn_smem, steps_smem,
    tile_smem, bars, Scratch, GradQ, stride_xb, stride_xs, stride_xh, n_tiles, n_cols, num_kv_heads, first_row, q_offset,
    q_len, kv_len, softmax_scale, D: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    STAGES: gl.constexpr, KV_STAGES: gl.constexpr, IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr,
    PREFETCH: gl.constexpr, GATES: gl.constexpr,
):  # fmt: skip
    """The products of all steps of a column, of all heads that share its keys."""
    NUM_WARPS: gl.constexpr = gl.num_warps()
    PIECES: gl.constexpr = D // 64
    WARPS_M: gl.constexpr = BLOCK_M // 16 if BLOCK_M // 16 < NUM_WARPS else NUM_WARPS
    WARPS_N: gl.constexpr = NUM_WARPS // WARPS_M
    dtype: gl.constexpr = k_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [NUM_WARPS, 1], [16, BLOCK_M, 16])
    dkv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [NUM_WARPS, 1], [16, D, 16])
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS_M, WARPS_N], [16, D // WARPS_N, 16])
    dk_boxes = k_smem._reinterpret(dtype, [KV_STAGES * PIECES, 1, 1, BLOCK_SIZE, 64], desc_dk.layout)
    dv_boxes = v_smem._reinterpret(dtype, [KV_STAGES * PIECES, 1, 1, BLOCK_SIZE, 64], desc_dv.layout)
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)
    while tile < n_tiles:
        col = tile % n_cols
        batch_head = tile // n_cols
        i_batch = batch_head // num_kv_heads
        dk = gl.zeros([BLOCK_SIZE, D], gl.float32, layout=dkv_layout)
        dv = gl.zeros([BLOCK_SIZE, D], gl.float32, layout=dkv_layout)
        slot = i_tile % KV_STAGES
        k_tile, v_tile = k_smem.index(slot), v_smem.index(slot)
        mbarrier.wait(bars.kv_full.index(slot), (i_tile // KV_STAGES) & 1)
        n_steps = number_at(steps_smem, slot)
        if n_steps > 0:
            s = gl.zeros([BLOCK_SIZE, BLOCK_M], gl.float32, layout=s_layout)
            if PREFETCH:
                mbarrier.wait(bars.q_full.index(it % STAGES), (it // STAGES) & 1)
                s = scores(k_tile, q_smem.index(it % STAGES), BLOCK_SIZE, BLOCK_M, s_layout)
                s = warpgroup_mma_wait(0, deps=[s])
            for i in range(n_steps):
                ds, dv = weights(
                    s, ds_smem, dv, k_smem, v_smem, slot, q_smem, grad_smem, lse_smem, delta_smem, row_smem, bars, it, col,
                    softmax_scale, first_row, kv_len, BLOCK_M, BLOCK_SIZE, STAGES, IS_CAUSAL, EVEN_KV, PREFETCH, s_layout,
                    dkv_layout,
                )  # fmt: skip
                dk, dv, s = gradients(
                    ds, dk, dv, k_smem, slot, q_smem, ds_smem, row_smem, turn_smem, bars, it, i + 1 < n_steps, i_batch, Scratch,
                    GradQ, stride_xb, stride_xs, stride_xh, softmax_scale, first_row, q_offset, q_len, D, BLOCK_M,
                    BLOCK_SIZE, STAGES, WARPS_M, WARPS_N, PREFETCH, GATES, s_layout, dq_layout,
                )  # fmt: skip
                it += 1
        # k and v are no longer needed: their memory holds dk and dv until they are stored
        k_tile.store((dk * softmax_scale).to(dtype))
        v_tile.store(dv.to(dtype))
        fence_async_shared()
        for piece in gl.static_range(PIECES):
            where = [i_batch, batch_head % num_kv_heads, col * BLOCK_SIZE, piece * 64]
            tma.async_copy_shared_to_global(desc_dk, where, dk_boxes.index(slot * PIECES + piece))
            tma.async_copy_shared_to_global(desc_dv, where, dv_boxes.index(slot * PIECES + piece))
        tma.store_wait(0)
        mbarrier.arrive(bars.kv_empty.index(slot), count=1)
        i_tile += 1
        tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)


NUMBERS = (
    "n_rows", "n_cols", "n_batch_kv_heads", "num_heads", "num_kv_heads", "heads_per_kv", "heads_per_list", "first_row",
    "q_offset", "q_len", "kv_len", "n_ring", "stride_xb", "stride_xs", "stride_xh",
)  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    desc_q, desc_k, desc_v, desc_grad, desc_dk, desc_dv, GradQ, Scratch, Stats, Turns, RowOffsets, Offsets, Indices,
    Entries, Counter, stride_xb, stride_xs, stride_xh, n_rows, n_cols, n_batch_kv_heads, num_heads, num_kv_heads,
    heads_per_kv, heads_per_list, first_row, q_offset, q_len, kv_len, n_ring, softmax_scale, D: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_SIZE: gl.constexpr, STAGES: gl.constexpr, KV_STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr, EVEN_KV: gl.constexpr, PREFETCH: gl.constexpr,
    GATES: gl.constexpr, HELPER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """See the top of this file. Launched with 8 warps: the default partition computes."""
    dtype: gl.constexpr = desc_q.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    q_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, D], tile_layout)
    grad_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_M, D], tile_layout)
    k_smem = gl.allocate_shared_memory(dtype, [KV_STAGES, BLOCK_SIZE, D], tile_layout)
    v_smem = gl.allocate_shared_memory(dtype, [KV_STAGES, BLOCK_SIZE, D], tile_layout)
    ds_smem = gl.allocate_shared_memory(dtype, [BLOCK_SIZE, BLOCK_M], tile_layout)
    lse_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], flat)
    delta_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], flat)
    row_smem = gl.allocate_shared_memory(gl.int32, [STAGES, 1], flat)
    turn_smem = gl.allocate_shared_memory(
        gl.int32, [4 * GATES, 1], flat
    )  # mode, tile, head and next turn of a step
    gate_row_smem = gl.allocate_shared_memory(gl.int32, [GATES, 1], flat)
    steps_smem = gl.allocate_shared_memory(gl.int32, [KV_STAGES, 1], flat)
    tile_smem = gl.allocate_shared_memory(gl.int32, [2, 1], flat)
    q_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    grad_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    stats_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    kv_full = gl.allocate_shared_memory(gl.int64, [KV_STAGES, 1], mbarrier.MBarrierLayout())
    kv_empty = gl.allocate_shared_memory(gl.int64, [KV_STAGES, 1], mbarrier.MBarrierLayout())
    tile_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    tile_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    gate_full = gl.allocate_shared_memory(gl.int64, [GATES, 1], mbarrier.MBarrierLayout())
    gate_done = gl.allocate_shared_memory(gl.int64, [GATES, 1], mbarrier.MBarrierLayout())
    gate_empty = gl.allocate_shared_memory(gl.int64, [GATES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(grad_full.index(i), count=1)
        mbarrier.init(stats_full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(KV_STAGES):
        mbarrier.init(kv_full.index(i), count=2)
        mbarrier.init(kv_empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(tile_full.index(i), count=1)
        mbarrier.init(tile_empty.index(i), count=3)
    for i in gl.static_range(GATES):
        mbarrier.init(gate_full.index(i), count=1)
        mbarrier.init(gate_done.index(i), count=1)
        mbarrier.init(gate_empty.index(i), count=1)
    fence_async_shared()
    bars = Bars(
        q_full, grad_full, stats_full, empty, kv_full, kv_empty, tile_full, tile_empty, gate_full, gate_done, gate_empty,
    )  # fmt: skip
    n_tiles = n_batch_kv_heads * n_cols
    SUB: gl.constexpr = BLOCK_SIZE // BLOCK_M
    gl.warp_specialize(
        [
            (compute, (
                desc_dk, desc_dv, q_smem, k_smem, v_smem, grad_smem, ds_smem, lse_smem, delta_smem, row_smem, turn_smem,
                steps_smem, tile_smem, bars, Scratch, GradQ, stride_xb, stride_xs, stride_xh, n_tiles, n_cols,
                num_kv_heads, first_row, q_offset, q_len, kv_len, softmax_scale, D, BLOCK_M, BLOCK_SIZE, STAGES,
                KV_STAGES, IS_CAUSAL, EVEN_KV, PREFETCH, GATES,
            )),
            (loader, (
                desc_q, desc_k, desc_v, desc_grad, q_smem, k_smem, v_smem, grad_smem, lse_smem, delta_smem, row_smem,
                steps_smem, tile_smem, bars, Offsets, Indices, Stats, Counter, n_tiles, n_rows, n_cols, num_heads, num_kv_heads,
                heads_per_kv, heads_per_list, first_row, q_offset, D, BLOCK_M, BLOCK_SIZE, STAGES, KV_STAGES,
            )),
            (gate, (
                turn_smem, gate_row_smem, tile_smem, bars, Offsets, Indices, Entries, RowOffsets, Turns, n_tiles, n_rows,
                n_cols, num_heads, num_kv_heads, heads_per_kv, heads_per_list, n_ring, SUB, GATES,
            )),
            (passer, (
                turn_smem, gate_row_smem, steps_smem, tile_smem, bars, Turns, n_tiles, n_rows, n_cols, num_heads,
                num_kv_heads, SUB, GATES, KV_STAGES,
            )),
        ],
        [1, 1, 1],
        [HELPER_REGISTERS, HELPER_REGISTERS, HELPER_REGISTERS],
    )  # fmt: skip
