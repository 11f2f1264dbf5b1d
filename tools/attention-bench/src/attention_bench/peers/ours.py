"""dilated-attention-pytorch: the backend of its choice, or one by name."""

from __future__ import annotations

from dataclasses import dataclass

from dilated_attention_pytorch import BlockLayout, block_sparse_attention

from ..cases import Case
from .base import Attend


@dataclass(frozen=True)
class Ours:
    backend: str | None
    heads_first: bool = False
    dense: bool = False

    @property
    def name(self) -> str:
        return "ours" if self.backend is None else f"ours-{self.backend}"

    def rejects(self, case: Case, device: str) -> str | None:
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        return lambda q, k, v: block_sparse_attention(
            q, k, v, layout, is_causal=case.causal, backend=self.backend
        )


OURS = (Ours(None), Ours("triton"), Ours("cpu"), Ours("reference"))
