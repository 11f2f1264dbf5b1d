"""Whether the single pass of the backward adds dq in fixed point, for calls that ask for the same bits every time; no maths."""

from __future__ import annotations

import os

import torch

from ..problem import AttentionProblem

SETTING = "DILATED_ATTENTION_BACKWARD_SUMS"  # auto: where they fit; off: never
SHARE = 16  # of the memory of a device, the sums take at most 1 of so many
MEMORY: dict[int, int] = {}
MEMORY_WITHOUT_GPU = 80 * 2**30  # of an H100: kernels compiled ahead of time


def is_on() -> bool:
    """Whether sums in fixed point are asked for where they fit."""
    setting = os.environ.get(SETTING, "off")
    if setting not in ("auto", "off"):
        raise ValueError(f"{SETTING} must be 'auto' or 'off', got {setting!r}")
    return setting == "auto"


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
