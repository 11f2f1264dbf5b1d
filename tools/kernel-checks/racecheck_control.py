"""Two kernels without any of our code, for which racecheck reports false positives.

    compute-sanitizer --tool racecheck --racecheck-indirect-barrier-dependency python tools/kernel-checks/racecheck_control.py exchange
    compute-sanitizer --tool racecheck --racecheck-indirect-barrier-dependency python tools/kernel-checks/racecheck_control.py ring

exchange  The first four warps exchange numbers through shared memory, with a barrier of their own, before the partitions of
          `gl.warp_specialize` begin. racecheck then reports the byte that tells the other warps their partition, although
          `barrier.sync 1` of all warps separates the write from the read. Without the exchange (`plain`) it does not.
ring      One warp passes numbers to four others through two slots in shared memory, with one mbarrier for full and one for
          empty. racecheck reports the read of a number against the write of the next number but one: the four warps meet at a
          barrier, one thread arrives for all of them, and the writer waits for that.

Both programs check their results. racecheck.py runs them next to the attention kernels.
"""

from __future__ import annotations

import sys

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

ROUNDS = gl.constexpr(50)


@gluon.jit
def worker(Out, PARTITION: gl.constexpr):
    """Store the number of this partition."""
    gl.store(Out + PARTITION, PARTITION)


@gluon.jit
def exchange_kernel(Out, Exchanged, EXCHANGE: gl.constexpr):
    """Numbers through shared memory, then three partitions of 4, 4 and 1 warps."""
    written: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    read: gl.constexpr = gl.BlockedLayout([2], [32], [4], [0])
    if EXCHANGE:
        numbers = gl.allocate_shared_memory(gl.int32, [256], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        numbers.store(gl.arange(0, 256, layout=written))
        gl.store(Exchanged + gl.arange(0, 256, layout=read), numbers.load(read))
    FIRST: gl.constexpr = 0
    SECOND: gl.constexpr = 1
    THIRD: gl.constexpr = 2
    gl.warp_specialize(
        [(worker, (Out, FIRST)), (worker, (Out, SECOND)), (worker, (Out, THIRD))], [4, 1], [240, 24]
    )


@gluon.jit
def reader(Out, numbers, full, empty):
    """Add up the numbers."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    total = 0
    for i in range(ROUNDS):
        mbarrier.wait(full.index(i & 1), (i >> 1) & 1)
        total += gl.max(numbers.index(i & 1).load(layout), 0)
        mbarrier.arrive(empty.index(i & 1), count=1)
    gl.store(Out, total)


@gluon.jit
def idle(Out, numbers, full, empty):
    """A partition that the kernel must have."""
    gl.store(Out + 1, 1)


@gluon.jit
def writer(Out, numbers, full, empty):
    """Pass on the numbers 0 to ROUNDS - 1."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    for i in range(ROUNDS):
        mbarrier.wait(empty.index(i & 1), ((i >> 1) & 1) ^ 1)
        numbers.index(i & 1).store(gl.full([1], i, gl.int32, layout=layout))
        read_back = gl.max(numbers.index(i & 1).load(layout), 0)
        gl.store(Out + 2, read_back)
        mbarrier.arrive(full.index(i & 1), count=1)


@gluon.jit
def ring_kernel(Out):
    """A writer of one warp, a reader of four."""
    numbers = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    arguments = (Out, numbers, full, empty)
    gl.warp_specialize([(idle, arguments), (reader, arguments), (writer, arguments)], [4, 1], [240, 24])


def main(which: str) -> int:
    """Exit status 1 if the result is wrong."""
    out = torch.full((3,), -1, dtype=torch.int32, device="cuda")
    if which == "ring":
        ring_kernel[(1,)](out, num_warps=4, maxnreg=168)
        return 0 if out[0] == sum(range(ROUNDS.value)) else 1
    exchanged = torch.arange(256, dtype=torch.int32, device="cuda")
    exchange_kernel[(64,)](out, exchanged, which == "exchange", num_warps=4, maxnreg=168)
    return 0 if out.tolist() == [0, 1, 2] and exchanged.tolist() == list(range(256)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
