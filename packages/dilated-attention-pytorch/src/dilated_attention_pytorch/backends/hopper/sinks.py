"""The gradient of the sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from ...launching.kept_kernel import KeptKernel
from .kernels.sink_gradient import sink_gradient_kernel

PARTS = 16  # programs of a head
CHUNKS = 32  # that a program takes at once
SINK_GRADIENT = KeptKernel(sink_gradient_kernel)


def sink_gradient(stats: Tensor, sinks: Tensor, starts: Tensor | None, n_heads: int, n_chunks: int) -> Tensor:
    """float32 (num_heads,).

    Args:
        stats: what the dq pass made, see kernels/lse_delta.py.
        sinks: float32 (num_heads,).
        starts: of `tile_starts`, where sequences have a table.
        n_heads: heads that `stats` has, num_heads or a multiple.
        n_chunks: chunks of each; with `starts` they say.
    """
    sums = torch.empty(n_heads, PARTS, dtype=torch.float32, device=stats.device)
    n_sequences = 0 if starts is None else starts.shape[1] - 1
    arguments = (stats, sinks, starts, sums, n_chunks, n_sequences, sinks.shape[0], PARTS, CHUNKS)
    SINK_GRADIENT.run(stats.device, n_heads * PARTS, arguments)
    return sums.view(-1, sinks.shape[0], PARTS).sum((0, 2))
