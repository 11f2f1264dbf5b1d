"""Scratch: memory that a call uses again and again; fresh memory costs a page fault per 4 KiB, each time."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers of one call, by name, of `dtype` where none is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory, valid until the name is taken again."""
        key = (name, dtype or self.dtype)
        n_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < n_elements:
            buffer = self.buffers[key] = torch.empty(n_elements, dtype=key[1], device="cpu")
        return buffer[:n_elements].view(shape)

    def gather(self, name: str, matrix: Tensor, index: Tensor) -> Tensor:
        """Rows `index`, flattened, of a matrix, in the scratch's own dtype."""
        shape = (index.numel(), matrix.shape[1])
        rows = self.take(name, *shape, dtype=matrix.dtype)
        torch.index_select(matrix, 0, index.flatten(), out=rows)
        return rows if rows.dtype == self.dtype else self.take(name, *shape).copy_(rows)
