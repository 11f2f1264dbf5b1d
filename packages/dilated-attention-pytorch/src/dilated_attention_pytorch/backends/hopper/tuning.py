"""Launch parameters of the Hopper kernels, chosen by hand from timings on an H200, bf16 (attention-bench/NOTES.md).

`attention-bench tune --backend hopper` searches stages, order, unrolling, queries per step and prefetching.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import AttentionProblem


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
    """block_m: queries per step; stages: steps of q and grad_out in flight; kv_stages: columns whose k and v are held.

    prefetch: the scores of the next step run while dq is added, which takes registers.
    """

    block_m: int
    stages: int
    kv_stages: int
    prefetch: bool = True


# (head_dim, block_size)
FORWARD: dict[tuple[int, int], ForwardTiles] = {
    (64, 64): ForwardTiles(10, unroll=4),
    (64, 128): ForwardTiles(4, unroll=4),
    (128, 64): ForwardTiles(6),
    (128, 128): ForwardTiles(3, ahead=False),
}
# Block size 64 is missing: there the portable kernels are faster.
BACKWARD: dict[tuple[int, int], BackwardTiles] = {
    (64, 128): BackwardTiles(128, 2, 2),
    (128, 128): BackwardTiles(64, 2, 2, prefetch=False),
}

# Registers per thread at the launch, and after the 12 warps of a program have shared them out: 65,536 in all.
LAUNCH_REGISTERS, CONSUMER_REGISTERS, HELPER_REGISTERS = 168, 240, 24
GATES = 4  # steps of the backward whose turn may have come before dq of the first of them is added

# Most bytes of float32 dq tiles in flight, but one head's worth is always there; more lets short heads overlap.
SCRATCH_BYTES = 32 * 2**20
# Heads that share keys have their tiles there together: groups that need more are left to the portable kernels, which
# are as fast (4 heads of 128 with 131,072 tokens, 256 MiB: 399 and 400 TFLOP/s) and take no such memory.
GROUP_BYTES = 32 * 2**20


def scratch_of_head(problem: AttentionProblem) -> int:
    """Bytes of the float32 dq tiles of one query head."""
    return problem.n_rows * problem.block_size * problem.head_dim * 4


def ring_of_heads(problem: AttentionProblem) -> int:
    """For how many query heads there are float32 tiles of dq; those that share keys are always there together."""
    p = problem
    fitting = SCRATCH_BYTES // scratch_of_head(p)
    return min(p.batch * p.num_heads, max(p.num_heads // p.num_kv_heads, fitting))
