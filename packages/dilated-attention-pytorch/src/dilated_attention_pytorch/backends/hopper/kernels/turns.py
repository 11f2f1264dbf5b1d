"""Additions to global memory by TMA in a fixed order: programs take turns at every chunk of queries.

`done` of a chunk says how many additions to it are in memory, times THREADS. A program waits until as many are in memory as come
before its own.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import thread_barrier

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
WAIT_FOR_ALL_BUT_1 = gl.constexpr("cp.async.bulk.wait_group 1; mov.b32 $0, $1;")


@gluon.jit
def additions(done):
    """How many additions of its threads are in memory; the load may be waited for later."""
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
    """Wait until `turn` additions are in memory; seen: `additions` of some time ago."""
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
def wait_added(number, BUT_ONE: gl.constexpr):
    """Wait until the additions of this thread, or all but the last, are in memory; `number` is not used.

    `tma.store_wait` only waits until they have read their tiles.
    """
    WAIT: gl.constexpr = WAIT_FOR_ALL_BUT_1 if BUT_ONE else WAIT_FOR_ALL
    gl.inline_asm_elementwise(WAIT, "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def pass_turn(done):
    """Say that an addition is in memory, for which the warp has waited.

    A release: on an H200 others saw a relaxed number before the addition, and the bits of two runs differed.
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
