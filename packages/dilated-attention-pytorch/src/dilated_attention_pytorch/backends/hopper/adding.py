"""How the single pass of the backward adds to the sums of dq, and for which calls that pays; no maths."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from ...environment_settings import BACKWARD_SUMS
from ..problem import AttentionProblem
from .passes import offsets_of
from .prepared import work_order_of
from .turn_order import LEAST_COLUMNS

MEMORY: dict[int, int] = {}
MEMORY_WITHOUT_GPU = 80 * 2**30  # of an H100: kernels compiled ahead of time
# The sums take at most 1 / SHARE of the memory of a device where two backwards must give the same bits, and else 1 / SHARE_IN_ANY_ORDER.
SHARE, SHARE_IN_ANY_ORDER = 16, 4
TURN_HEADS = 4  # heads whose columns are started in turn, at most
SAME_BITS = "two backwards must give the same bits, and"


@dataclass(frozen=True)
class Limits:
    """From which sizes on a single pass is faster than two passes; blocks of a row or a column are counted on the mean."""

    # In fixed point. At 128 the conversion takes as long as the two products that are saved. Clearing and converting the sums takes
    # as long as those of about 6 blocks a row; in small calls the launches take longer.
    fixed_point_dims: tuple[int, ...] = (64,)
    fixed_point_blocks: int = 8  # of a row
    fixed_point_queries: int = 2**18  # of all heads and batch elements
    # In turns. With fewer heads, or shorter columns, programs wait for each other: on an H200 1 head of 51 blocks takes 1.05 of the
    # time of two passes, 4 heads of 10 blocks 1.12. At head_dim 64 fixed point takes less time.
    turn_dims: tuple[int, ...] = (128,)
    turn_columns: int = LEAST_COLUMNS
    turn_heads: int = 2  # whose columns are started in turn
    turn_blocks: int = 80  # of a column, times the query heads of a kv head, times the heads in turn
    # In any order. On an H200 two passes take less time with 1 and with 5 blocks of 128, and as much with 20 of 64.
    any_order_blocks: int = 6  # of a row, of 128 tokens each
    any_order_blocks_of_64: int = 32
    # In any order, with rows cut into ranges. A head reads q and grad_out and adds to sums of 4 bytes; so much of that stays in the
    # L2 cache of 50 MB. dk and dv are rounded twice for each range: 3.2e-3 off by that in bfloat16 with 4, 4.1e-3 with 8.
    l2_bytes: int = 32 * 2**20
    most_ranges: int = 4
    range_blocks: int = 8  # of a column, in a range


class Adding(Enum):
    """How the sums are added to."""

    ANY_ORDER = "in any order"
    TURNS = "in turns"
    """Programs wait for each other (kernels/turns.py)."""
    FIXED_POINT = "in fixed point"
    """Whole numbers, in any order (kernels/fixed_point.py)."""


def is_on() -> bool:
    """Whether calls with the same bits every time may have sums, where these fit and pay."""
    return BACKWARD_SUMS.read() != "off"


def device_memory(device: torch.device) -> int:
    """All bytes of a device, also those in use: what is free must not decide about bits."""
    if device.type != "cuda":
        return MEMORY_WITHOUT_GPU
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in MEMORY:
        MEMORY[index] = torch.cuda.get_device_properties(index).total_memory
    return MEMORY[index]


def sums_fit(problem: AttentionProblem, share: int) -> bool:
    """Whether the sums of dq, 4 bytes for every number of q, take at most 1 / share of the memory of the device."""
    p = problem
    n_bytes = 4 * p.batch * p.q_len * p.num_heads * p.head_dim
    return share * n_bytes <= device_memory(p.q.device)


def how_to_add(problem: AttentionProblem, in_fixed_order: bool, limits: Limits) -> Adding | str:
    """How the sums of a problem of blocks of 64 or 128 are added to, or why there are none.

    Args:
        problem: its head_dim is one of those of the single pass.
        in_fixed_order: whether two backwards must give the same bits.
        limits: from which sizes on a single pass is faster.
    """
    p = problem
    if p.grid.block_size == 64:
        return (
            f"{SAME_BITS} sums of blocks of 64 are added to in any order"
            if in_fixed_order
            else in_any_order_at_64(p, limits)
        )
    if not in_fixed_order:
        return why_few(p, limits.any_order_blocks) or why_large(p) or Adding.ANY_ORDER
    if turns_pay(p, limits):
        found = Adding.TURNS
    elif not fixed_point_pays(p, limits):
        return f"{SAME_BITS} a single pass that does so is no faster"
    elif p.q.dtype != torch.bfloat16:
        # nor would torch's GradScaler see it
        return f"{SAME_BITS} sums in fixed point cannot show that a float16 product overflowed"
    else:
        found = Adding.FIXED_POINT
    if not is_on():
        return f"{SAME_BITS} {BACKWARD_SUMS.name} is off"
    return found if sums_fit(p, SHARE) else f"{SAME_BITS} the sums take too much memory"


def in_any_order_at_64(problem: AttentionProblem, limits: Limits) -> Adding | str:
    """`how_to_add` of blocks of 64, in any order.

    Random blocks take 0.96 of the time of two passes where L2 holds what is added to, and 1.5 times as long where it does not;
    blocks of `dilated_sparse` 0.89.
    """
    p = problem
    why_not = why_few(p, limits.any_order_blocks_of_64) or why_large(p)
    if why_not is not None:
        return why_not
    # programs go through the query heads of a kv head at their own pace
    n_bytes = bytes_of_head(p) * (p.num_heads // p.num_kv_heads)
    if p.of_pattern or n_bytes <= limits.l2_bytes:
        return Adding.ANY_ORDER
    size = f"{n_bytes >> 20} MiB, more than {limits.l2_bytes >> 20}"
    return (
        f"blocks are of 64 and of no pattern, and q, grad_out and sums of heads that share keys take {size}"
    )


def why_few(problem: AttentionProblem, least: int) -> str | None:
    """Why two passes take no longer, if a row has fewer blocks than `least` on the mean."""
    p = problem
    if p.rows.indices.numel() >= least * p.layout_heads * p.grid.n_rows:
        return None
    return f"a row has fewer than {least} blocks of {p.grid.block_size} on the mean"


def why_large(problem: AttentionProblem) -> str | None:
    """Why there is no memory for sums that are added to in any order."""
    if sums_fit(problem, SHARE_IN_ANY_ORDER):
        return None
    return f"the sums of dq take more than 1 / {SHARE_IN_ANY_ORDER} of the GPU's memory"


def bytes_of_head(problem: AttentionProblem) -> int:
    """What a head reads of q and grad_out, and adds to."""
    p = problem
    return p.grid.n_rows * p.block_size * p.head_dim * (2 * p.q.element_size() + 4)


def fixed_point_pays(problem: AttentionProblem, limits: Limits) -> bool:
    """Whether a single pass in fixed point is faster than two passes, by sizes that the host knows."""
    p = problem
    batch, q_len, num_heads, head_dim = p.q.shape
    if head_dim not in limits.fixed_point_dims or batch * q_len * num_heads < limits.fixed_point_queries:
        return False
    return p.rows.indices.numel() >= limits.fixed_point_blocks * p.layout_heads * p.grid.n_rows


def turns_pay(problem: AttentionProblem, limits: Limits) -> bool:
    """Whether a single pass in turns is faster than two passes, by what the host knows.

    Of more keys than queries a row moves by less than a block a column, so programs come to it too early.
    """
    p = problem
    if p.head_dim not in limits.turn_dims or p.is_causal or not has_turn_lists(p):
        return False
    if p.grid.n_cols < limits.turn_columns or p.grid.n_rows < p.grid.n_cols:
        return False
    heads = heads_in_turn(p)
    n_blocks = p.cols.indices.numel() // (p.layout_heads * p.grid.n_cols)
    return (
        heads >= limits.turn_heads
        and n_blocks * (p.num_heads // p.num_kv_heads) * heads >= limits.turn_blocks
    )


def has_turn_lists(problem: AttentionProblem) -> bool:
    """Whether the layout of a problem of blocks of 128 has lists of turns (turn_order.py), and these serve the problem."""
    p = problem
    return bool(p.prepared) and shares_lists(p) and work_order_of(p).numel() > offsets_of(p).turns_at


def shares_lists(problem: AttentionProblem) -> bool:
    """Whether the query heads of a kv head have the same lists."""
    p = problem
    return p.num_heads // p.layout_heads % (p.num_heads // p.num_kv_heads) == 0


def heads_in_turn(problem: AttentionProblem) -> int:
    """How many kv heads there are whose columns are started in turn: the most that divides their number, up to TURN_HEADS."""
    n_heads = problem.batch * problem.num_kv_heads
    return next(n for n in range(TURN_HEADS, 0, -1) if n_heads % n == 0)


def row_ranges(problem: AttentionProblem, limits: Limits) -> int:
    """Into how many ranges the rows of a call in any order are cut, whose sums and queries stay in the L2 cache.

    1 where programs that run at the same time see the same rows anyway, as in patterns, where a range has few blocks, and where
    there would be too many.
    """
    p = problem
    n_bytes = bytes_of_head(p)
    if p.of_pattern or p.block_size == 64 or n_bytes <= limits.l2_bytes or not shares_lists(p):
        return 1
    n_ranges = -(-n_bytes // limits.l2_bytes)
    n_blocks = p.cols.indices.numel() // (p.layout_heads * p.grid.n_cols)
    return 1 if n_ranges > limits.most_ranges else max(1, min(n_ranges, n_blocks // limits.range_blocks))
