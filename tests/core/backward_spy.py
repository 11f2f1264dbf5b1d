"""What the CPU backend is told in its backwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dilated_attention_pytorch.backends.cpu import CPU
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients


@contextmanager
def backwards() -> Iterator[list[bool]]:
    """`deterministic` of every problem whose gradients the CPU backend computes meanwhile."""
    seen: list[bool] = []
    backward = type(CPU).backward

    def noting(self: Any, problem: AttentionProblem, *args: Any) -> Gradients:
        seen.append(problem.deterministic)
        return backward(self, problem, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(CPU), "backward", noting)
        yield seen
