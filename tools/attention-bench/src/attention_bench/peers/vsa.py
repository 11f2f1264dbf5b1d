"""VSA: the block-sparse kernels of FastVideo's video sparse attention (ThunderKittens, Hopper), of fastvideo-kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend
from .block_lists import block_lists
from .limits import Limits, not_installed

LIMITS = Limits(blocks=(64,), head_dims=(64, 128), dtypes=("bfloat16",))
COMPILED = "fastvideo_kernel._C.fastvideo_kernel_ops"  # without it the package takes its Triton kernels, and says nothing


class VideoSparseAttention:
    name = "vsa"
    heads_first = True
    dense = False

    def rejects(self, case: Case, device: str) -> str | None:
        return LIMITS.rejects(case, device, self._why_missing)

    def _why_missing(self) -> str | None:
        of_package, of_kernels = (
            not_installed(module, "fastvideo-kernel") for module in ("fastvideo_kernel", COMPILED)
        )
        return of_package or of_kernels

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        from fastvideo_kernel import block_sparse_attn_from_indices

        columns, counts = block_lists(layout, case.batch, case.heads)
        # Whole blocks.
        sizes = torch.full((layout.grid.n_cols,), case.block, dtype=torch.int32, device=layout.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = block_sparse_attn_from_indices(q, k, v, columns, counts, sizes)[0]
            return out

        return attend


VSA = VideoSparseAttention()
