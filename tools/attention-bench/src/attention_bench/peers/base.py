"""What a peer must offer."""

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
        """What it is called on the command line and in tables."""

    @property
    def heads_first(self) -> bool:
        """Takes (batch, heads, seqlen, head_dim), else (batch, seqlen, heads, head_dim)."""

    @property
    def dense(self) -> bool:
        """Ignores the pattern: its figures count every pair."""

    def rejects(self, case: Case, device: str) -> str | None:
        """Why the case cannot be tried at all; None if it can."""

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        """The call that is timed."""
