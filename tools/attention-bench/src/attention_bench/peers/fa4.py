"""FlashAttention-4 with block sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend


def lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (1, 1, n) and left-packed columns (1, 1, n, n) of a dense block mask."""
    counts = mask.sum(-1).to(torch.int32)
    columns = torch.argsort(mask.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None, None].contiguous(), columns[None, None].contiguous()


class FlashAttention4:
    name = "fa4"
    heads_first = False
    dense = False

    def rejects(self, case: Case, device: str) -> str | None:
        if device != "cuda":
            return "needs a CUDA device"
        if case.segment_lengths is not None:
            return "no token dilation: its lists hold whole blocks"
        if case.causal:
            return "its causal flag is not combined with a block-sparse mask here"
        try:
            import flash_attn.cute.interface  # noqa: F401
        except ImportError as error:
            return f"not installed ({error})"
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
        from flash_attn.cute.interface import flash_attn_func

        mask = layout.to_dense()

        def tensors(active: Tensor) -> Any:
            none = torch.zeros_like(active)
            return BlockSparseTensorsTorch(*lists(none), *lists(active), block_size=(case.block, case.block))

        forward, backward = tensors(mask), tensors(mask.T.contiguous())

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = flash_attn_func(q, k, v, block_sparse_tensors=forward, block_sparse_tensors_bwd=backward)
            result: Tensor = out[0] if isinstance(out, tuple) else out
            return result

        return attend


FA4 = FlashAttention4()
