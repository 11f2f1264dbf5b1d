"""dilated-attention-pytorch with the backend that it chooses, with a given one, or in its fastest mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dilated_attention_pytorch import BlockLayout, block_sparse_attention

from ..cases import Case
from .base import Attend


@dataclass(frozen=True)
class Ours:
    """is_unordered: whether the backward may add dq in no fixed order, as those of FA4 and BSA do (`deterministic=False`)."""

    backend: str | None = None
    is_unordered: bool = False
    heads_first: bool = False
    dense: bool = False

    @property
    def name(self) -> str:
        if self.is_unordered:
            return "ours-unordered"
        return "ours" if self.backend is None else f"ours-{self.backend}"

    def rejects(self, case: Case, device: str) -> str | None:
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        # defaults are left out: `attention-bench host` times a plain call
        options: dict[str, Any] = {}
        if case.causal:
            options["is_causal"] = True
        if self.backend is not None:
            options["backend"] = self.backend
        if self.is_unordered:
            options["deterministic"] = False
        if case.segment_lengths is not None:
            options |= {"segment_lengths": case.segment_lengths, "dilation_rates": case.dilation_rates}
        return lambda q, k, v: block_sparse_attention(q, k, v, layout, **options)


OURS = (Ours(), Ours(is_unordered=True), Ours("hopper"), Ours("triton"), Ours("cpu"), Ours("reference"))
