"""cudnn.BSA: the block-sparse attention of nvidia-cudnn-frontend, whose kernels for Hopper are made by the CuTe DSL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend
from .block_lists import block_lists
from .limits import Limits, not_installed

LIMITS = Limits(blocks=(64, 128), head_dims=(64, 96, 128), grouped=True)


@dataclass(frozen=True)
class CudnnBSA:
    """With one of its settings.

    kv_splits: parts of the keys in the forward, "auto" for its own choice, which it has for blocks of 64 and equal rows.
    one_bucket: whether the backward takes all blocks of queries at once instead of 256 at a time.
    """

    name: str
    kv_splits: int | str = 1
    one_bucket: bool = False
    heads_first: bool = True
    dense: bool = False

    def rejects(self, case: Case, device: str) -> str | None:
        if LIMITS.why_not(case, device) is None and self.kv_splits == "auto" and case.block != 64:
            return f"kv_splits='auto' is for blocks of 64, got {case.block}"
        return LIMITS.rejects(case, device, self._why_missing)

    def _why_missing(self) -> str | None:
        return not_installed("cudnn.block_sparse_attention", "nvidia-cudnn-frontend nvidia-cutlass-dsl")

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        columns, counts = block_lists(layout, case.batch, case.heads)
        are_equal = bool((counts == counts.flatten()[0]).all())
        options: dict[str, Any] = {
            "q2k_block_index": columns,
            "sparse_block_size": case.block,
            "layout": "bhsd",
            **({"block_sparse_num": columns.shape[-1]} if are_equal else {"q2k_block_nums": counts}),
        }
        of_forward = {**options, "kv_splits": self.kv_splits}
        of_backward = {**options, "bucket_size_blocks": counts.shape[-1] if self.one_bucket else None}
        return lambda q, k, v: Attention.apply(q, k, v, of_forward, of_backward)  # type: ignore[no-untyped-call]


class Attention(torch.autograd.Function):
    """Its forward and backward, which are not differentiable by themselves."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], of_backward: dict[str, Any]
    ) -> Tensor:
        from cudnn.block_sparse_attention import block_sparse_attention_forward

        made = block_sparse_attention_forward(q, k, v, **options)
        out: Tensor = made["o_tensor"]
        ctx.save_for_backward(q, k, v, out, made["lse_tensor"])
        ctx.of_backward = of_backward
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from cudnn.block_sparse_attention import block_sparse_attention_backward

        made = block_sparse_attention_backward(grads[0].contiguous(), *ctx.saved_tensors, **ctx.of_backward)
        return made["dq_tensor"], made["dk_tensor"], made["dv_tensor"], None, None


BSA = (
    CudnnBSA("bsa"),
    CudnnBSA("bsa-one-bucket", one_bucket=True),
    CudnnBSA("bsa-2-splits", kv_splits=2, one_bucket=True),
    CudnnBSA("bsa-auto-splits", kv_splits="auto", one_bucket=True),
)
