"""Compiled FlexAttention with the BlockMask of our layout."""

from __future__ import annotations

from typing import Any

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend


class Flex:
    name = "flex"
    heads_first = True
    dense = False

    def rejects(self, case: Case, device: str) -> str | None:
        if case.segment_lengths is not None:
            return "no token dilation: its lists hold whole blocks"
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        import torch._dynamo
        import torch._functorch.config
        from torch.nn.attention.flex_attention import flex_attention

        # beyond the limit, or after a failed compilation, dynamo would silently run the dense eager version
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 1000
        torch._functorch.config.donated_buffer = False  # the backward is repeated on the same graph
        block_mask = layout.to_block_mask(None if layout.num_heads == 1 else case.heads)
        # few queries have a kernel of their own, whose tiles fit
        small = case.block < 128 and layout.device.type == "cuda" and not case.decode
        options: Any = {"fwd_BLOCK_M": case.block, "fwd_BLOCK_N": case.block} if small else {}
        compiled = torch.compile(flex_attention, dynamic=False)
        gqa = case.num_kv_heads != case.heads
        return lambda q, k, v: compiled(
            q, k, v, block_mask=block_mask, kernel_options=options, enable_gqa=gqa
        )


FLEX = Flex()
