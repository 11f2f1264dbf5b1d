"""Launch parameters of the Hopper kernels, chosen from timings on an H100 and an H200, bf16 (attention-bench/NOTES.md).

`attention-bench tune --backend hopper` searches the tiles; the registers are what 12 warps can share.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardTiles:
    """k_stages, v_stages: tiles of k and v in flight; slots: with 2, q of the next row is loaded during this one.

    overlap: what runs during a softmax, "intra_warpgroup" or "none" (attend.py); tile: keys per step; unroll: tiles between
    two points where no product is in flight; programs: how many share a multiprocessor.
    """

    k_stages: int
    v_stages: int
    slots: int
    overlap: str
    tile: int
    unroll: int = 2
    programs: int = 1


@dataclass(frozen=True)
class BackwardTiles:
    """tile: tokens per step, at most the block size; stages: steps of them in flight.

    slots: places for the kept tiles (backward.py); with 2, those of the next row or column are loaded during this one.
    operands_in_registers: the kept tiles are in registers: a step reads half as much shared memory for its scores.
    late_lse: a step of the dkdv pass reads lse behind its products, not before them.
    overlap_steps: the steps of a block overlap; not where sums take too many registers (C7512 of ptxas).
    one_at_a_time: scores and dp of a step of the dkdv pass share their registers, and p is kept in 16 bits.
    """

    tile: int
    stages: int
    slots: int
    operands_in_registers: bool
    late_lse: bool = False
    overlap_steps: bool = False
    one_at_a_time: bool = False


HEAD_DIMS = (64, 128, 192, 256)  # of the kernels


def kernel_dim(head_dim: int) -> int:
    """The smallest head_dim of the kernels that holds one."""
    return next(dim for dim in HEAD_DIMS if dim >= head_dim)


def used_columns(head_dim: int, dim: int) -> int:
    """Of the columns of tiles of a kernel those that the products of q and k read: all, a half or three quarters.

    Of 192, which are 128 and 64: all or 128.
    """
    some: tuple[int, ...] = (128,) if dim == 192 else (dim // 2, dim // 4 * 3)
    return next(n for n in (*some, dim) if n >= max(head_dim, 64))


def value_columns(v_head_dim: int, dim: int) -> int:
    """The columns of tiles of v, where those of q have `dim`: in those of 256 there is no place for an out of 128 and 64."""
    columns = kernel_dim(v_head_dim)
    return dim if columns == 192 else columns


# All by (head_dim of the kernels, block_size).
FORWARD: dict[tuple[int, int], ForwardTiles] = {
    (64, 64): ForwardTiles(5, 5, 2, "none", 64, programs=2),
    (64, 128): ForwardTiles(5, 5, 2, "none", 64, programs=2),
    (128, 64): ForwardTiles(5, 5, 2, "intra_warpgroup", 64),
    (128, 128): ForwardTiles(2, 2, 2, "intra_warpgroup", 128, unroll=1),
    (192, 64): ForwardTiles(3, 3, 1, "intra_warpgroup", 64),
    (192, 128): ForwardTiles(3, 3, 1, "intra_warpgroup", 64),
    (256, 64): ForwardTiles(2, 2, 1, "none", 64),
    (256, 128): ForwardTiles(2, 2, 1, "none", 64),
}
# Of calls with positions, masks, biases or score terms: their arguments take the room that two programs leave of the shared
# memory of a multiprocessor. Else as above.
FORWARD_OF_WIDE: dict[tuple[int, int], ForwardTiles] = {
    (64, 64): ForwardTiles(5, 4, 2, "none", 64, programs=2)
}
# Of q and k of 192 or 256 and v of at most 128, by their head_dim and block_size.
FORWARD_OF_NARROW_VALUES: dict[tuple[int, int], ForwardTiles] = {
    (192, 64): ForwardTiles(4, 4, 1, "intra_warpgroup", 64),
    (192, 128): ForwardTiles(2, 2, 1, "intra_warpgroup", 128, unroll=1),
    (256, 64): ForwardTiles(3, 3, 1, "intra_warpgroup", 64),
    (256, 128): ForwardTiles(3, 3, 1, "intra_warpgroup", 64),
}
# Of two heads with the same rows of blocks of 64, by head_dim: a tile of keys may be two blocks. Else as above.
FORWARD_OF_PAIRS: dict[int, ForwardTiles] = {128: ForwardTiles(2, 2, 2, "intra_warpgroup", 128, unroll=1)}
# Keys from which on two heads are paired: for fewer, what is saved does not pay for one more kernel to compile.
PAIRED_FROM = 2048
# The two passes of the backward; with token dilation the steps of the dkdv pass never overlap.
DQ: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 9, 2, True),
    (64, 128): BackwardTiles(128, 5, 2, True),
    (128, 64): BackwardTiles(64, 4, 1, True),
    (128, 128): BackwardTiles(128, 2, 1, False),
    (192, 64): BackwardTiles(64, 2, 1, False),
    (192, 128): BackwardTiles(64, 2, 1, False),
    (256, 64): BackwardTiles(32, 3, 1, False),
    (256, 128): BackwardTiles(32, 3, 1, False),
}
# At head_dim 128 dk and dv take 128 registers; at 256 either of them does, so each has a pass.
DKDV: dict[tuple[int, int], BackwardTiles] = {
    (64, 64): BackwardTiles(64, 8, 2, True, late_lse=True),
    (64, 128): BackwardTiles(64, 9, 2, True, overlap_steps=True),
    (128, 64): BackwardTiles(64, 3, 2, False),
    (128, 128): BackwardTiles(64, 3, 2, False),
    (192, 64): BackwardTiles(64, 2, 1, False),
    (192, 128): BackwardTiles(64, 2, 1, False),
    (256, 64): BackwardTiles(32, 3, 1, False),
    (256, 128): BackwardTiles(32, 3, 1, False),
}


# Of q and k of 192 and v of at most 128, or the other way round: dk and dv take 160 registers.
NARROW_DQ = BackwardTiles(64, 3, 1, False)
NARROW_DKDV = BackwardTiles(64, 3, 1, False, one_at_a_time=True)
NARROW_ONE_SUM = BackwardTiles(64, 3, 1, False)  # where dk and dv have a pass each


@dataclass(frozen=True)
class SinglePassTiles:
    """stages: steps of 64 queries in flight; slots: as of BackwardTiles; ds_stages: steps of ds in flight; dq_tiles: halves of 64
    columns that are added at the same time.

    operands_in_registers: the kept tiles are in registers. one_at_a_time: scores and dp are not computed together, and p is
    kept in 16 bits (backward_single_pass.py). The registers of the two warpgroups, of the third and of the other warps: the
    16 warps of a program are launched with 128.
    """

    stages: int
    slots: int
    ds_stages: int
    dq_tiles: int
    operands_in_registers: bool
    one_at_a_time: bool
    consumer: int = 208
    dq: int = 72
    helper: int = 24


SINGLE_PASS_LAUNCH_REGISTERS = 128
# By head_dim.
SINGLE_PASS: dict[int, SinglePassTiles] = {
    64: SinglePassTiles(4, 2, 3, 2, operands_in_registers=True, one_at_a_time=False),
    128: SinglePassTiles(3, 1, 2, 2, operands_in_registers=False, one_at_a_time=True),
}


@dataclass(frozen=True)
class Registers:
    """Per thread: at the launch, and after the 12 warps of a program have redistributed them."""

    launch: int
    consumer: int
    helper: int


# A multiprocessor has 65,536.
FORWARD_REGISTERS = {1: Registers(168, 240, 24), 2: Registers(80, 104, 24)}  # by its programs
# By whether ptxas is new (gluon_names.py): old ones keep more values in the loading warp of the dkdv pass.
BACKWARD_REGISTERS = {False: Registers(168, 232, 40), True: Registers(168, 240, 24)}
ONE_AT_A_TIME_REGISTERS = Registers(168, 240, 24)
