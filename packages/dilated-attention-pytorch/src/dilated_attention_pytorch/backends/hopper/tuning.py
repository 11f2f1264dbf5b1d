"""Launch parameters of the Hopper kernels, chosen by hand from timings, bf16 (attention-bench/NOTES.md): forward on an H200, backward on an H100.

`attention-bench tune --backend hopper` searches stages, order, unrolling, tokens per step, slots and what is held.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardTiles:
    """stages: tiles of k and v in flight.

    ahead: the scores of the next tile run during a softmax, else the product of p and v of the tile before
    (attend.py); unroll: so many tiles from one drained pipeline to the next.
    """

    stages: int
    ahead: bool = True
    unroll: int = 2


@dataclass(frozen=True)
class BackwardTiles:
    """tile: tokens per step, at most the block size; stages: steps of them in flight.

    slots: places for a and b (backward.py); with 2 those of the next row or column are loaded during this one.
    held: a and b are in registers during a row or column: a step reads half as much shared memory for its scores.
    """

    tile: int
    stages: int
    slots: int
    held: bool


# All by (head_dim, block_size).
FORWARD: dict[tuple[int, int], ForwardTiles] = {
    (64, 64): ForwardTiles(10, unroll=4),
    (64, 128): ForwardTiles(4, unroll=4),
    (128, 64): ForwardTiles(6),
    (128, 128): ForwardTiles(3, ahead=False),
}
# The two passes of the backward.
ROWS: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 9, 2, True),
    (64, 128): BackwardTiles(128, 5, 2, True),
    (128, 64): BackwardTiles(64, 5, 1, True),
    (128, 128): BackwardTiles(128, 2, 1, False),
}
# At head_dim 128 dk and dv take 128 registers.
COLUMNS: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 9, 2, True),
    (64, 128): BackwardTiles(64, 9, 2, True),
    (128, 64): BackwardTiles(64, 4, 1, False),
    (128, 128): BackwardTiles(64, 3, 2, False),
}

# Registers per thread at the launch, and after the 12 warps of a program have shared them out: 65,536 in all.
LAUNCH_REGISTERS, CONSUMER_REGISTERS, HELPER_REGISTERS = 168, 240, 24
