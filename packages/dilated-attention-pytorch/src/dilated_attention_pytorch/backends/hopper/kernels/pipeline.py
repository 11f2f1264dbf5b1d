"""The pipeline of tiles between the loading warp and the two consumer warpgroups: k and v forward, streamed tiles backward.

Tile n of the pipeline lies in stage n % stages. A stage is filled again once both warpgroups have released it; the loading
warp releases it for a warpgroup that does not want the tile. An mbarrier carries one phase bit, so a warpgroup that skips
tiles could mistake a later fill of the stage for its own. Where warpgroups skip tiles there are PHASES times as many `full`
barriers as stages: a warpgroup may then skip (PHASES - 1) * stages tiles in a row, and lag behind by as many.

In the forward k and v have loading warps of their own. A tile of k says how far v is: it was loaded when the warpgroups had
released the k of a ring before, which they do only after the v of their tile before that one has arrived.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..gluon_names import aggregate

PHASES = gl.constexpr(4)


@gluon.jit
def barriers(N: gl.constexpr):
    """N barriers, for `init_barriers`."""
    return gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())


@gluon.jit
def init_barriers(these, count: gl.constexpr, others=None, count_of_others: gl.constexpr = 0):
    """Make barriers ready that complete after so many arrivals, and as many others."""
    N: gl.constexpr = these.shape[0]
    for i in gl.static_range(N):
        mbarrier.init(these.index(i), count=count)
        if others is not None:
            mbarrier.init(others.index(i), count=count_of_others)


@aggregate
class Ring:
    """Stages for tiles, and the barriers that tell when a stage is full and when it is empty; the tails of tiles (tma.py)."""

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    tails: gl.shared_memory_descriptor | gl.constexpr

    @gluon.jit
    def full_barrier(self, place):
        """The barrier that completes when tile `place` has arrived."""
        return self.full.index(place % self.full.shape[0])

    @gluon.jit
    def wait_full(self, place):
        """Wait until tile `place` has arrived."""
        mbarrier.wait(self.full_barrier(place), (place // self.full.shape[0]) & 1)

    @gluon.jit
    def consumer_wait(self, place):
        """Wait for tile `place` and return it."""
        self.wait_full(place)
        return self.tiles.index(place % self.tiles.shape[0])

    @gluon.jit
    def tail(self, place):
        """The tail of tile `place`, which has arrived."""
        return self.tails.index(place % self.tiles.shape[0])

    @gluon.jit
    def consumer_release(self, place):
        """Release the stage of tile `place`."""
        mbarrier.arrive(self.empty.index(place % self.tiles.shape[0]), count=1)

    @gluon.jit
    def skip(self, place):
        """Wait for tile `place` and release it unread."""
        self.consumer_wait(place)
        self.consumer_release(place)

    @gluon.jit
    def wait_past(self, last, place):
        """Catch up with a tile far behind `last`, the last one known to have arrived; return the new last one."""
        while place - last > self.full.shape[0] - self.tiles.shape[0]:
            last += self.full.shape[0] - self.tiles.shape[0]
            self.wait_full(last)
        return last
