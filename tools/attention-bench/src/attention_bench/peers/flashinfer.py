"""FlashInfer's block-sparse attention with a mask for every kv head. It compiles its kernels in its first call."""

from __future__ import annotations

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import DTYPES, Case
from .base import Attend
from .block_lists import block_mask
from .limits import Limits, not_installed

LIMITS = Limits(head_dims=(64, 128, 256), grouped=True, batched=False)
WORKSPACE_BYTES = 2**27  # what its documentation recommends


class FlashInfer:
    name = "flashinfer"
    heads_first = True
    dense = False

    def rejects(self, case: Case, device: str) -> str | None:
        return LIMITS.rejects(case, device, lambda: not_installed("flashinfer", "flashinfer-python"))

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        import flashinfer

        device = layout.device
        wrapper = flashinfer.VariableBlockSparseAttentionWrapper(
            torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        )
        n_heads = case.num_kv_heads
        mask = block_mask(layout, n_heads).expand(n_heads, -1, -1).contiguous()
        sizes = torch.full(mask.shape[:2], case.block, dtype=torch.int32, device=device)
        dtype = DTYPES[case.dtype]
        wrapper.plan(
            mask, sizes, sizes, case.heads, n_heads, case.head_dim, q_data_type=dtype, kv_data_type=dtype
        )

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if q.requires_grad:
                raise NotImplementedError("it has no backward")
            out: Tensor = wrapper.run(q[0], k[0], v[0])
            return out[None]

        return attend


FLASHINFER = FlashInfer()
