"""Launch parameters of the Hopper kernels, chosen from timings on an H100 and an H200, bf16 (attention-bench/NOTES.md).

`attention-bench tune --backend hopper` searches all of the tiles; registers are what 12 warps can share.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardTiles:
    """k_stages, v_stages: tiles of k and v in flight; slots: with 2, q of the next row is loaded during this one.

    order: what runs during a softmax (attend.py); tile: keys per step; unroll: so many tiles from one drained pipeline to
    the next; programs: on a multiprocessor at a time.
    """

    k_stages: int
    v_stages: int
    slots: int
    order: str
    tile: int
    unroll: int = 2
    programs: int = 1


@dataclass(frozen=True)
class BackwardTiles:
    """tile: tokens per step, at most the block size; stages: steps of them in flight.

    slots: places for a and b (backward.py); with 2 those of the next row or column are loaded during this one.
    held: a and b are in registers during a row or column: a step reads half as much shared memory for its scores.
    late: lse of a step of a column is read behind its products, not before them.
    chained: the steps of a block overlap; not where sums take too many registers (C7512 of ptxas).
    """

    tile: int
    stages: int
    slots: int
    held: bool
    late: bool = False
    chained: bool = False


# All by (head_dim, block_size).
FORWARD: dict[tuple[int, int], ForwardTiles] = {
    (64, 64): ForwardTiles(5, 5, 2, "alone", 64, programs=2),
    (64, 128): ForwardTiles(5, 5, 2, "alone", 64, programs=2),
    (128, 64): ForwardTiles(5, 5, 2, "ahead", 64),
    (128, 128): ForwardTiles(2, 2, 2, "ahead", 128, unroll=1),
}
# The two passes of the backward; with token dilation a step of the columns is never chained.
ROWS: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 9, 2, True),
    (64, 128): BackwardTiles(128, 5, 2, True),
    (128, 64): BackwardTiles(64, 4, 1, True),
    (128, 128): BackwardTiles(128, 2, 1, False),
}
# At head_dim 128 dk and dv take 128 registers.
COLUMNS: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 8, 2, True, late=True),
    (64, 128): BackwardTiles(64, 9, 2, True, chained=True),
    (128, 64): BackwardTiles(64, 3, 2, False),
    (128, 128): BackwardTiles(64, 3, 2, False),
}


@dataclass(frozen=True)
class Registers:
    """Per thread: at the launch, and after the 12 warps of a program have shared them out."""

    launch: int
    consumer: int
    helper: int


# A multiprocessor has 65,536.
FORWARD_REGISTERS = {1: Registers(168, 240, 24), 2: Registers(80, 104, 24)}  # by its programs
# By whether ptxas is a new one (gluon_names.py): the old ones keep more in the copying warp of the columns.
BACKWARD_REGISTERS = {False: Registers(168, 232, 40), True: Registers(168, 240, 24)}
