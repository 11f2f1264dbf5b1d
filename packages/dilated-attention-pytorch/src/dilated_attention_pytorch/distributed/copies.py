"""Copies of index tensors on the device of a call."""

from __future__ import annotations

import torch
from torch import Tensor


def copied_to(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the host does not wait for a GPU, as it would for memory that is not pinned."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
