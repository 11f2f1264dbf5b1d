"""Scratch: memory that is used again and again. Fresh memory costs a page fault per 4 KiB, each time, as long as the
kernel may take for a small call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._torch_internals import without_modes

MOST_BYTES = 2**24  # that a thread keeps from one call to the next

Buffers = dict[tuple[str, torch.dtype], Tensor]
KEPT = threading.local()


class Scratch:
    """Buffers by name, of `dtype` where none is given."""

    def __init__(self, dtype: torch.dtype, buffers: Buffers) -> None:
        self.dtype = dtype
        self.buffers = buffers

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory, valid until the name is taken again or the call ends."""
        key = (name, dtype or self.dtype)
        n_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < n_elements:
            with without_modes():
                buffer = self.buffers[key] = torch.empty(n_elements, dtype=key[1], device="cpu")
        return buffer[:n_elements].view(shape)

    def gather(self, name: str, matrix: Tensor, index: Tensor) -> Tensor:
        """Rows `index`, flattened, of a matrix, in the scratch's own dtype."""
        shape = (index.numel(), matrix.shape[1])
        rows = self.take(name, *shape, dtype=matrix.dtype)
        torch.index_select(matrix, 0, index.flatten(), out=rows)
        return rows if rows.dtype == self.dtype else self.take(name, *shape).copy_(rows)


@contextlib.contextmanager
def kept_buffers() -> Iterator[Buffers]:
    """What this thread has kept, for one call; a call within a call gets fresh memory."""
    buffers: Buffers = KEPT.__dict__.pop("buffers", {})
    try:
        yield buffers
    finally:
        n_bytes = 0
        for key, buffer in reversed(list(buffers.items())):
            n_bytes += buffer.nbytes
            if n_bytes > MOST_BYTES:
                n_bytes -= buffer.nbytes
                del buffers[key]
        KEPT.buffers = buffers
