"""FlashAttention-4 with block sparsity or an exact window, and dense."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend
from .block_lists import block_mask
from .limits import Limits, not_installed

LIMITS = Limits(causal=True, grouped=True, v_dims=True, ragged=True, windows=True)


def lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (1, heads, n) and left-packed columns (1, heads, n, n) of a dense block mask (heads, n, n)."""
    counts = mask.sum(-1).to(torch.int32)
    columns = torch.argsort(mask.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None].contiguous(), columns[None].contiguous()


@dataclass(frozen=True)
class FlashAttention4:
    name: str
    dense: bool = False
    heads_first: bool = False

    def rejects(self, case: Case, device: str) -> str | None:
        return LIMITS.rejects(case, device, self._why_missing)

    def _why_missing(self) -> str | None:
        return not_installed("flash_attn.cute.interface", "--pre flash-attn-4")

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        from flash_attn.cute.interface import flash_attn_func

        options = {"causal": case.causal}
        if not self.dense:
            options = of_window(case) if case.window is not None else of_blocks(case, layout)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = flash_attn_func(q, k, v, **options)
            result: Tensor = out[0] if isinstance(out, tuple) else out
            return result

        return attend


def of_window(case: Case) -> dict[str, Any]:
    """The options of an exact window: tokens before a query and after it, without itself."""
    assert case.window is not None
    before = case.window - 1 if case.causal else case.window // 2
    return {"causal": case.causal, "window_size": (before, 0 if case.causal else before)}


def of_blocks(case: Case, layout: BlockLayout) -> dict[str, Any]:
    """The options of the active blocks; those on the diagonal of a causal case are asked for every pair."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    mask = block_mask(layout, case.heads)
    diagonal = torch.zeros_like(mask)
    if case.causal:
        diagonal.diagonal(dim1=1, dim2=2).fill_(True)

    def tensors(active: Tensor) -> Any:
        return BlockSparseTensorsTorch(
            *lists(active & diagonal), *lists(active & ~diagonal), block_size=(case.block, case.block)
        )

    made = {
        "block_sparse_tensors": tensors(mask),
        "block_sparse_tensors_bwd": tensors(mask.mT.contiguous()),
    }
    return {**made, "mask_mod": up_to_the_query()} if case.causal else made


@functools.cache
def up_to_the_query() -> Any:
    """Its `mask_mod` of causal attention."""
    from cutlass import cute

    @cute.jit  # type: ignore[untyped-decorator, unused-ignore]
    def is_kept(batch: Any, head: Any, query: Any, key: Any, seqlen_info: Any, aux_tensors: Any) -> Any:
        return key <= query

    return is_kept


FA4 = (FlashAttention4("fa4"), FlashAttention4("fa4-dense", dense=True))
