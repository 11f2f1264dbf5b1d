"""The ring of tiles between the loading warp and the two warpgroups of a kernel: k and v forward, x and y backward.

Place n of the ring lies in stage n % stages. A stage is filled again when both warpgroups have given it back; the
loading warp gives back for a warpgroup that does not want the tile. A barrier tells only odd from even fillings, and
a warpgroup that passes over tiles must not take another filling for its own. Where that happens there are LAPS times as
many `full` barriers as stages: a warpgroup may pass over (LAPS - 1) * stages places at a time, and be as late for
those that it passes over.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

LAPS = gl.constexpr(4)


@gluon.jit
def full_at(full, place):
    """The barrier that tells when the tile at a place is there."""
    return full.index(place % full.shape[0])


@gluon.jit
def wait_full(full, place):
    """Until the tile at `place` is there."""
    mbarrier.wait(full_at(full, place), (place // full.shape[0]) & 1)


@gluon.jit
def wait_past(ring, last, place):
    """Keep up with a place that is far after the last one of which it is known that it was filled; returns the new last."""
    tiles, full, empty = ring
    while place - last > full.shape[0] - tiles.shape[0]:
        last += full.shape[0] - tiles.shape[0]
        wait_full(full, last)
    return last


@gluon.jit
def get_tile(ring, place):
    """The tile at a place, when it is there."""
    tiles, full, empty = ring
    wait_full(full, place)
    return tiles.index(place % tiles.shape[0])


@gluon.jit
def give_back(ring, place):
    """Give the stage of a place back."""
    tiles, full, empty = ring
    mbarrier.arrive(empty.index(place % tiles.shape[0]), count=1)


@gluon.jit
def pass_over(k_ring, v_ring, place):
    """Give back a tile of k and of v that was loaded although nothing of it is visible."""
    get_tile(k_ring, place)
    give_back(k_ring, place)
    get_tile(v_ring, place)
    give_back(v_ring, place)
