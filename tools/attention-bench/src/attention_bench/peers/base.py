"""Peer: the interface of a library to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Peer(Protocol):
    """A library that computes attention; `prepare` builds its mask from our layout."""

    @property
    def name(self) -> str:
        """Name on the command line and in tables."""

    @property
    def heads_first(self) -> bool:
        """Whether inputs are (batch, heads, seqlen, head_dim) instead of (batch, seqlen, heads, head_dim)."""

    @property
    def dense(self) -> bool:
        """Whether the pattern is ignored; the figures then count every pair."""

    def rejects(self, case: Case, device: str) -> str | None:
        """Why the case is not supported; None if it is."""

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        """The call to be timed."""
