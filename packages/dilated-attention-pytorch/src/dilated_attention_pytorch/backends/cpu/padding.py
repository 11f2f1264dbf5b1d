"""Masks of the keys that no query of a batch element sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem


def padded_keys(problem: AttentionProblem) -> Tensor | None:
    """Padding, bool (batch, kv_len); None if the call has neither `kv_lengths` nor a `key_padding_mask`."""
    p, padded = problem, problem.key_padding_mask
    if p.kv_lengths is not None:
        past_end = torch.arange(p.kv_len, device="cpu") >= p.kv_lengths[:, None]
        padded = past_end if padded is None else padded | past_end
    return padded


def hidden_keys(problem: AttentionProblem) -> Tensor | None:
    """Padding and the positions of the last block past kv_len, bool (batch, n_cols, block_size); None if none."""
    p, padded = problem, padded_keys(problem)
    n_missing = p.n_cols * p.block_size - p.kv_len
    if padded is None:
        if n_missing == 0:
            return None
        padded = torch.zeros(p.batch, p.kv_len, dtype=torch.bool, device="cpu")
    whole: Tensor = torch.nn.functional.pad(padded, (0, n_missing), value=True)
    return whole.view(p.batch, p.n_cols, p.block_size)
