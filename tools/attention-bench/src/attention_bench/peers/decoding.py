"""dilated-attention-pytorch decoding: block_sparse_decode with one layout for all lengths, on contiguous or paged caches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_sparse_decode

from ..cases import Case
from .base import Attend


@dataclass(frozen=True)
class Decoding:
    name: str
    page_size: int | None
    heads_first: bool = False
    dense: bool = False

    def rejects(self, case: Case, device: str) -> str | None:
        if not case.decode:
            return "not a step of decoding"
        if case.segment_lengths is not None:
            return "no token dilation"
        if self.page_size is not None and case.seqlen % self.page_size:
            return f"seqlen is no multiple of the pages of {self.page_size}"
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        device = str(layout.device)
        of_all_lengths = replace(case, decode=False).layout(device)
        lengths = torch.full((case.batch,), case.seqlen, dtype=torch.int32, device=device)
        size = self.page_size
        if size is None:
            return lambda q, k, v: block_sparse_decode(q, k, v, of_all_lengths, lengths)
        n_pages = case.seqlen // size
        table = torch.arange(case.batch * n_pages, dtype=torch.int32, device=device).view(case.batch, n_pages)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k_pages, v_pages = (x.view(-1, size, *x.shape[2:]) for x in (k, v))
            return block_sparse_decode(q, k_pages, v_pages, of_all_lengths, lengths, table)

        return attend


DECODING = (Decoding("ours-decode", None), Decoding("ours-decode-paged", 64))
