"""Load: other work that a device does at the same time, which changes when the programs of a kernel run."""

from __future__ import annotations

import threading
from types import TracebackType

import torch

SIZES = (512, 4096, 1024, 2048, 256)  # of the matrices, in turn: a few multiprocessors up to all of them


class Load:
    """Products of matrices on a second stream of a GPU, or in a second thread of a CPU; none if not `is_on`."""

    def __init__(self, device: str, is_on: bool) -> None:
        self.device, self.is_on = device, is_on
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._n_added = 0

    def __enter__(self) -> Load:
        if not self.is_on:
            return self
        if self.device == "cuda":
            self._stream = torch.cuda.Stream()
            self._matrices = [torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for n in SIZES]
            torch.cuda.synchronize()
        else:
            self._thread = threading.Thread(target=self._multiply, daemon=True)
            self._thread.start()
        return self

    def add(self) -> None:
        """More work for a GPU, about as much as a short call."""
        if self.is_on and self.device == "cuda":
            with torch.cuda.stream(self._stream):
                matrix = self._matrices[self._n_added % len(SIZES)]
                for _ in range(max(1, 2048 // matrix.shape[0])):
                    torch.mm(matrix, matrix)
            self._n_added += 1

    def _multiply(self) -> None:
        matrix = torch.randn(128, 128)
        while not self._stop.is_set():
            torch.mm(matrix, matrix)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
