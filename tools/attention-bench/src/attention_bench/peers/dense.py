"""Dense attention with torch's scaled_dot_product_attention, for the break-even density."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend


@dataclass(frozen=True)
class Dense:
    name: str
    backend: SDPBackend | None
    heads_first: bool = True
    dense: bool = True

    def rejects(self, case: Case, device: str) -> str | None:
        if self.backend is not None and device != "cuda":
            return "needs a CUDA device"
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            chosen = contextlib.nullcontext() if self.backend is None else sdpa_kernel(self.backend)
            with chosen:
                gqa = case.num_kv_heads != case.heads
                is_causal = case.causal and not case.decode  # the query of a decoding step sees all keys
                return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=gqa)

        return attend


CUDNN = Dense("cudnn", SDPBackend.CUDNN_ATTENTION)
FA2 = Dense("fa2", SDPBackend.FLASH_ATTENTION)
SDPA = Dense("sdpa", None)
