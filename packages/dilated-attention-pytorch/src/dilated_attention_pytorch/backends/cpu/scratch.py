"""Scratch: memory that a call uses again and again; fresh memory costs a page fault per 4 KiB, each time."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers of one call, by name."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory, valid until the name is taken again with this dtype."""
        n_elements = torch.Size(shape).numel()
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < n_elements:
            buffer = self.buffers[name, dtype] = torch.empty(n_elements, dtype=dtype, device="cpu")
        return buffer[:n_elements].view(shape)
