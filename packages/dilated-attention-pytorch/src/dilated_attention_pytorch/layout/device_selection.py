"""Blocks chosen on a GPU: what `best_of` chooses, by a kernel; no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..launching.kept_kernel import KeptKernel
from .best_blocks import WEIGHT_BITS, Choice, share_in_units
from .selection_kernel import select_kernel

MOST_COLUMNS = 16384  # of a row, which a program holds in its registers
FILL = 128  # slots behind the chosen blocks that a program fills at once
SELECT = KeptKernel(select_kernel)
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def fits(scores: Tensor) -> bool:
    """Whether the kernel serves these scores."""
    return scores.dtype in TYPES and scores.shape[-1] <= MOST_COLUMNS


def warps_of(n_cols: int) -> int:
    """Warps of a program: at most 32 columns a thread."""
    return 1 if n_cols <= 512 else 2 if n_cols <= 1024 else 4 if n_cols <= 4096 else n_cols // 1024


def choose_on_device(
    scores: Tensor, budgets: Tensor | None, choice: Choice, diagonal: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices (heads, n_rows, n_slots) and counts (heads, n_rows), int32, of scores (heads, n_rows, n_cols).

    budgets: integers (heads, n_rows), or None. diagonal: integers (n_rows,), or None for `diagonal_of`.
    """
    heads, n_rows, n_cols = scores.shape
    scores = scores if scores.stride(2) == 1 else scores.contiguous()
    indices = torch.empty(heads, n_rows, choice.n_slots, dtype=torch.int32, device=scores.device)
    counts = torch.empty(heads, n_rows, dtype=torch.int32, device=scores.device)
    block = max(32, 1 << (n_cols - 1).bit_length())
    given = [counts if x is None else x.to(torch.int32).contiguous() for x in (budgets, diagonal)]
    SELECT.run(
        scores.device, heads * n_rows,
        (
            scores, *given, indices, counts, scores.stride(0), scores.stride(1), n_rows, n_cols, choice.n_slots, choice.window,
            choice.sinks, 0 if choice.top_p is None else share_in_units(choice.top_p), budgets is not None,
            diagonal is not None, choice.top_p is not None, choice.keep_diagonal, choice.causal, WEIGHT_BITS, block, FILL,
        ),
        num_warps=warps_of(block),
    )  # fmt: skip
    return indices, counts
