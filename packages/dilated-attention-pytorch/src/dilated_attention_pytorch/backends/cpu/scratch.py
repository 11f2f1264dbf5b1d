"""Scratch memory that is reused between calls.

Fresh memory costs a page fault per 4 KiB, which can take as long as the kernel itself in a small call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._torch_internals import without_modes

MAX_KEPT_BYTES = 2**24  # per thread, between calls

Buffers = dict[tuple[str, torch.dtype], Tensor]
KEPT = threading.local()


class Scratch:
    """Buffers by name, with a default dtype."""

    def __init__(self, dtype: torch.dtype, buffers: Buffers) -> None:
        self.dtype = dtype
        self.buffers = buffers

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory, valid until the same name is taken again or the call ends."""
        key = (name, dtype or self.dtype)
        n_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < n_elements:
            with without_modes():
                buffer = self.buffers[key] = torch.empty(n_elements, dtype=key[1], device="cpu")
        return buffer[:n_elements].view(shape)

    def gather(self, name: str, matrix: Tensor, index: Tensor) -> Tensor:
        """Gather rows of a matrix by the flattened `index`, converted to the default dtype."""
        shape = (index.numel(), matrix.shape[1])
        rows = self.take(name, *shape, dtype=matrix.dtype)
        torch.index_select(matrix, 0, index.flatten(), out=rows)
        return rows if rows.dtype == self.dtype else self.take(name, *shape).copy_(rows)


@contextlib.contextmanager
def kept_buffers() -> Iterator[Buffers]:
    """The buffers that this thread kept, for one call; a nested call gets fresh memory."""
    buffers: Buffers = KEPT.__dict__.pop("buffers", {})
    try:
        yield buffers
    finally:
        n_bytes = 0
        for key, buffer in reversed(list(buffers.items())):
            n_bytes += buffer.nbytes
            if n_bytes > MAX_KEPT_BYTES:
                n_bytes -= buffer.nbytes
                del buffers[key]
        KEPT.buffers = buffers
