"""Additions to global memory by TMA in a fixed order: programs take turns at every block of queries.

`done` of a block says how many programs have added to it, times THREADS. A program waits until as many have as come before it.
A warp of its own passes turns on, because a release takes as long as a piece of the sums takes to come.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..gluon_names import thread_barrier
from .tile_scheduler import read_number, release_work_tile, wait_work_tile, write_number

# Every thread of the warp adds 1, which ptxas makes one addition. If a single thread wrote, ptxas would take the warp for
# diverged, and keep the addresses of the whole kernel in ordinary registers.
THREADS = gl.constexpr(32)
IS_LESS = gl.constexpr("""{
    .reg .pred p;
    .reg .b32 less;
    setp.lt.s32 p, $1, $2;
    selp.b32 less, 1, 0, p;
    redux.sync.or.b32 $0, less, 0xffffffff;
}""")
WAIT_FOR_ALL = gl.constexpr("cp.async.bulk.wait_group 0; mov.b32 $0, $1;")


@gluon.jit
def additions(done):
    """How often turns were passed on by a thread; the load may be waited for later."""
    return gl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];",
        "=r,l",
        [done],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def wait_turn(done, turn, seen):
    """Wait until `turn` programs have added; seen: `additions` of some time ago."""
    early = gl.inline_asm_elementwise(
        IS_LESS, "=r,r,r", [seen, turn * THREADS], dtype=gl.int32, is_pure=False, pack=1
    )
    while early != 0:
        early = gl.inline_asm_elementwise(
            IS_LESS, "=r,r,r", [additions(done), turn * THREADS], dtype=gl.int32, is_pure=False, pack=1
        )
    # the addition that follows is one of the asynchronous proxy
    gl.inline_asm_elementwise(
        "fence.proxy.async.global; mov.b32 $0, $1;", "=r,r", [early], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def wait_added(number):
    """Wait until the additions of this thread are in memory; `number` is not used.

    `tma.store_wait` only waits until they have read their tiles.
    """
    gl.inline_asm_elementwise(WAIT_FOR_ALL, "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def pass_turn(done):
    """Say that additions are in memory, for which the adding warp has waited.

    A release: on an H200 others saw a relaxed number before the addition, also behind a fence of the proxy, and the bits of two runs
    differed.
    """
    thread_barrier()
    gl.inline_asm_elementwise(
        "red.release.gpu.global.add.u32 [$1], 1; mov.b32 $0, 0;",
        "=r,l",
        [done],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def hand_over(passed, n, block):
    """Let the passing warp pass on the n-th turn, at a block to which the additions are in memory; -1: there are no more."""
    mbarrier.wait(passed.empty.index(n & 1), ((n >> 1) & 1) ^ 1)
    write_number(passed, n, 0, block)
    # all lanes have written before one arrives (tile_scheduler.py)
    mbarrier.arrive(passed.full.index(n & 1), count=1, pred=read_number(passed, n, 0) >= -1)


@gluon.jit
def passing_warp(sums):
    """Passes turns on; does nothing where there are none."""
    if sums.done is not None:
        n = 0
        block = take_over(sums.passed, n)
        while block >= 0:
            pass_turn(sums.done + block)
            n += 1
            block = take_over(sums.passed, n)


@gluon.jit
def take_over(passed, n):
    """The block of the n-th turn, once it is handed over."""
    block = wait_work_tile(passed, n)
    release_work_tile(passed, n)
    return block
