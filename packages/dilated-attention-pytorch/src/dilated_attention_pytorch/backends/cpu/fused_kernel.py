"""PyTorch's fused attention kernel for the CPU, the one behind `scaled_dot_product_attention`.

Its operators are private, so this is the only file that calls them. They exist with these arguments since torch 2.6.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention: out (shape and dtype of q) and lse (batch, heads, q_len), float32 or float64.

    q (batch, heads, q_len, dim); k and v (batch, heads, kv_len, dim); the last stride of each is 1. `mask` has q's
    dtype, is broadcastable to (batch, heads, q_len, kv_len) and is added to the scaled scores. A query that sees no
    key gets output 0 and lse 0.
    """
    out, lse = FORWARD(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
    return out, lse


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `lse` may come from a softmax over more keys than these."""
    if grad_out.stride(3) != 1:  # e.g. the gradient of a sum, an expanded scalar
        grad_out = grad_out.contiguous()
    grad_q, grad_k, grad_v = BACKWARD(grad_out, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
    return grad_q, grad_k, grad_v
