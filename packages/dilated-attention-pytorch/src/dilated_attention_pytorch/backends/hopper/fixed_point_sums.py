"""Whether the single pass of the backward adds dq in fixed point, for calls that ask for the same bits every time; no maths."""

from __future__ import annotations

import torch

from ...environment_settings import BACKWARD_SUMS
from ..problem import AttentionProblem

SHARE = 16  # of the memory of a device, the sums take at most 1 of so many
# At 128 the conversion takes as long as the two products that are saved. Clearing and converting the sums takes as long as those
# of about 6 blocks a row; in small calls the launches take longer.
HEAD_DIMS = (64,)
LEAST_BLOCKS = 8  # of a row, on the mean
LEAST_QUERIES = 2**18  # of all heads and batch elements
MEMORY: dict[int, int] = {}
MEMORY_WITHOUT_GPU = 80 * 2**30  # of an H100: kernels compiled ahead of time


def is_on() -> bool:
    """Whether sums in fixed point are asked for where they fit and pay."""
    return BACKWARD_SUMS.read() == "auto"


def device_memory(device: torch.device) -> int:
    """All bytes of a device, also those in use: what is free must not decide about bits."""
    if device.type != "cuda":
        return MEMORY_WITHOUT_GPU
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in MEMORY:
        MEMORY[index] = torch.cuda.get_device_properties(index).total_memory
    return MEMORY[index]


def sums_fit(problem: AttentionProblem) -> bool:
    """Whether the sums of dq, 4 bytes for every number of q, take little enough of the device."""
    p = problem
    n_bytes = 4 * p.batch * p.q_len * p.num_heads * p.head_dim
    return SHARE * n_bytes <= device_memory(p.q.device)


def sums_pay(problem: AttentionProblem) -> bool:
    """Whether a single pass is faster than two for a problem of blocks of 128, by sizes that the host knows."""
    p = problem
    batch, q_len, num_heads, head_dim = p.q.shape
    if head_dim not in HEAD_DIMS or batch * q_len * num_heads < LEAST_QUERIES:
        return False
    return p.rows.indices.numel() >= LEAST_BLOCKS * p.layout_heads * p.grid.n_rows


def why_not(problem: AttentionProblem) -> str | None:
    """Why the sums of a problem that the single pass serves are not in fixed point; None if they are."""
    if problem.q.dtype != torch.bfloat16:
        # nor would torch's GradScaler see it
        return "fixed-point sums cannot show that a float16 product overflowed"
    if not sums_pay(problem):
        return "fixed-point sums are no faster"
    if not is_on():
        return f"{BACKWARD_SUMS.name} is off"
    if not sums_fit(problem):
        return "the sums take too much memory"
    return None
