"""The attention problem with which `attention-bench tune` times tiles."""

from __future__ import annotations

import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.problem import AttentionProblem, Backend
from dilated_attention_pytorch.functional import make_problem

Shape = tuple[str, int, int]  # kernel, head_dim, block_size


def make(shape: Shape, seqlen: int, density: float, backend: Backend) -> AttentionProblem:
    """The problem, prepared for a backend."""
    _, head_dim, block_size = shape
    heads = 2048 // head_dim
    q, k, v = (torch.randn(1, seqlen, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    config = SparsePatternConfig(sparsity_ratio=density, block_size=block_size, dilation_rates=[1, 2, 4, 8])
    layout = BlockLayout.from_config(config, seqlen, device="cuda")
    return make_problem(q, k, v, layout).prepared_by(backend, layout)
