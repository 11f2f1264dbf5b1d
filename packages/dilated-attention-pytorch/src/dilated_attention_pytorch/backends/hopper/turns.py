"""Whose turn it is to add to a tile of dq: a counter per tile, so that the sums are the same in every run.

Two helper warps: the gate waits for the turn of a step, a few steps ahead of the products, and says where its dq goes
and how (`mode`: FIRST stores, LAST finishes, both at once where a row has one block); the passer sets the counter when
dq is added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .schedule import shared_tile


class Bars(NamedTuple):
    """The barriers of the backward kernel; `full` and `done` say that something is there, `empty` that it was read."""

    q_full: Any
    grad_full: Any
    stats_full: Any
    empty: Any
    kv_full: Any
    kv_empty: Any
    tile_full: Any
    tile_empty: Any
    gate_full: Any
    gate_done: Any
    gate_empty: Any


FIRST = gl.constexpr(1)
LAST = gl.constexpr(2)


@gluon.jit
def column_place(tile, n_cols, num_kv_heads, heads_per_kv, heads_per_list):
    """Batch, kv head, first query head, column and list of a tile."""
    batch_head = tile // n_cols
    col = tile % n_cols
    i_batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
    return i_batch, kv_head, kv_head * heads_per_kv, col


@gluon.jit
def number_at(smem, place):
    """An int32 of shared memory as a scalar."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(smem.index(place).load(layout), 0)


@gluon.jit
def wait_for_turn(Turn, turn):
    """Spin until the counter is at least `turn`."""
    seen = gl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [Turn], dtype=gl.int32, is_pure=False, pack=1
    )
    while seen < turn:
        seen = gl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", [Turn], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def pass_turn_on(Turn, turn):
    """Make everything written before visible, then set the counter; every lane stores the same."""
    gl.inline_asm_elementwise(
        "st.release.gpu.global.b32 [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [Turn.to(gl.int64, bitcast=True), turn],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def gate(
    turn_smem, gate_row_smem, tile_smem, bars, Offsets, Indices, Entries, RowOffsets, Turns, n_tiles, n_rows, n_cols, num_heads,
    num_kv_heads, heads_per_kv, heads_per_list, n_ring, SUB: gl.constexpr,
    GATES: gl.constexpr,
):  # fmt: skip
    """Lets dq of every step be added when the columns before have added theirs."""
    lanes: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)
    while tile < n_tiles:
        i_batch, kv_head, first_head, col = column_place(
            tile, n_cols, num_kv_heads, heads_per_kv, heads_per_list
        )
        for g in range(heads_per_kv):
            head = first_head + g
            batch_head = i_batch * num_heads + head
            this_list = (head // heads_per_list) * n_cols + col
            lo = gl.load(Offsets + this_list)
            hi = gl.load(Offsets + this_list + 1)
            for i in range(hi - lo):
                e = hi - 1 - i
                row = gl.load(Indices + e)
                row_list = RowOffsets + (head // heads_per_list) * n_rows + row
                begin = gl.load(row_list)
                turn = gl.load(Entries + e) - begin
                n_turns = gl.load(row_list + 1) - begin
                mode = gl.where(turn == 0, FIRST, 0) + gl.where(turn == n_turns - 1, LAST, 0)
                for j in gl.static_range(SUB):
                    sub = SUB - 1 - j
                    Turn = Turns + (batch_head.to(gl.int64) * n_rows + row) * SUB + sub
                    if turn > 0:
                        wait_for_turn(Turn, turn)
                    else:
                        # the tile is that of an earlier head until its row is done
                        owner = batch_head - n_ring
                        owner_turns = 0
                        while (owner >= 0) & (owner_turns == 0):
                            owner_list = RowOffsets + (owner % num_heads // heads_per_list) * n_rows + row
                            owner_turns = gl.load(owner_list + 1) - gl.load(owner_list)
                            if owner_turns > 0:
                                wait_for_turn(
                                    Turns + (owner.to(gl.int64) * n_rows + row) * SUB + sub, owner_turns
                                )
                            owner -= n_ring
                    place = it % GATES
                    mbarrier.wait(bars.gate_empty.index(place), ((it // GATES) & 1) ^ 1)
                    slot = ((batch_head % n_ring) * n_rows + row) * SUB + sub
                    turn_smem.index(place * 4).store(gl.full([1], mode, gl.int32, layout=lanes))
                    turn_smem.index(place * 4 + 1).store(gl.full([1], slot, gl.int32, layout=lanes))
                    turn_smem.index(place * 4 + 2).store(gl.full([1], head, gl.int32, layout=lanes))
                    gate_row_smem.index(place).store(gl.full([1], row * SUB + sub, gl.int32, layout=lanes))
                    turn_smem.index(place * 4 + 3).store(gl.full([1], turn + 1, gl.int32, layout=lanes))
                    mbarrier.arrive(bars.gate_full.index(place), count=1)
                    it += 1
        i_tile += 1
        tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)


@gluon.jit
def passer(
    turn_smem, gate_row_smem, steps_smem, tile_smem, bars, Turns, n_tiles, n_rows, n_cols, num_heads, num_kv_heads,
    SUB: gl.constexpr, GATES: gl.constexpr, KV_STAGES: gl.constexpr,
):  # fmt: skip
    """Passes the turn on when the dq of a step is added."""
    it = 0
    i_tile = 0
    tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)
    while tile < n_tiles:
        i_batch = tile // n_cols // num_kv_heads
        slot = i_tile % KV_STAGES
        mbarrier.wait(bars.kv_full.index(slot), (i_tile // KV_STAGES) & 1)
        n_steps = number_at(steps_smem, slot)
        mbarrier.arrive(bars.kv_empty.index(slot), count=1)
        for _ in range(n_steps):
            place = it % GATES
            mbarrier.wait(bars.gate_done.index(place), (it // GATES) & 1)
            batch_head = i_batch * num_heads + number_at(turn_smem, place * 4 + 2)
            turn = number_at(turn_smem, place * 4 + 3)
            i_rows = number_at(gate_row_smem, place)
            mbarrier.arrive(bars.gate_empty.index(place), count=1)
            pass_turn_on(Turns + batch_head.to(gl.int64) * n_rows * SUB + i_rows, turn)
            it += 1
        i_tile += 1
        tile = shared_tile(tile_smem, bars.tile_full, bars.tile_empty, i_tile)
