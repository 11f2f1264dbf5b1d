"""Keys that no query sees: padding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem


def padded_keys(problem: AttentionProblem) -> Tensor | None:
    """Bool (batch, kv_len), or None if there are none."""
    p, padded = problem, problem.key_padding_mask
    if p.kv_lengths is not None:
        behind = torch.arange(p.kv_len, device="cpu") >= p.kv_lengths[:, None]
        padded = behind if padded is None else padded | behind
    return padded


def hidden_keys(problem: AttentionProblem) -> Tensor | None:
    """Padding and what is missing of the last block, bool (batch, n_cols, block_size); None if there are none."""
    p, padded = problem, padded_keys(problem)
    n_missing = p.n_cols * p.block_size - p.kv_len
    if padded is None:
        if n_missing == 0:
            return None
        padded = torch.zeros(p.batch, p.kv_len, dtype=torch.bool, device="cpu")
    whole: Tensor = torch.nn.functional.pad(padded, (0, n_missing), value=True)
    return whole.view(p.batch, p.n_cols, p.block_size)
