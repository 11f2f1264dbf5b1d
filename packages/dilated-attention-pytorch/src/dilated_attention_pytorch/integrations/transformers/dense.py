"""The layers that stay dense: scaled_dot_product_attention, with the masks that KeyRanges stand for."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .layer_call import LayerCall


def attend_densely(call: LayerCall) -> Tensor:
    """out (batch, q_len, num_heads, v_head_dim), of every key that a query may see."""
    mask = call.mask if call.mask is not None else dense_mask(call)
    out: Tensor = sdpa_attention_forward(
        call.module, call.query, call.key, call.value, mask, dropout=call.dropout, scaling=call.scaling, is_causal=call.causal
    )[0]  # fmt: skip
    return out


def dense_mask(call: LayerCall) -> Tensor | None:
    """bool (batch or 1, 1, q_len, kv_len), True where seen; None where is_causal says it all."""
    q_len, kv_len, ranges, device = call.q_len, call.kv_len, call.ranges, call.query.device
    window = call.sliding_window
    is_plain = ranges is None and call.packed is None
    if is_plain and (window is None or window >= kv_len) and (not call.causal or q_len in (1, kv_len)):
        return None
    query, key = torch.arange(q_len, device=device)[:, None], torch.arange(kv_len, device=device)
    if call.packed is not None:
        of_q, of_k = (
            document_of(call.packed.cu_seqlens_q, call.query),
            document_of(call.packed.cu_seqlens_k, call.key),
        )
        seen = of_q[:, :, None] == of_k[:, None]
        query = query + (kv_len - q_len if call.causal else 0)
    elif ranges is None:
        seen = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        query = query + (kv_len - q_len if call.causal else 0)
    else:
        start, end = ranges.start[:, None, None], ranges.end[:, None, None]
        seen = (key >= start) & (key < end)
        query = query + (end - q_len if call.causal else 0)
    if call.causal:
        seen = seen & (key <= query)
    if window is not None:
        seen = seen & (key > query - window)
        if not call.causal:
            seen = seen & (key < query + window)
    return seen[:, None].expand(-1, 1, q_len, kv_len)


def document_of(cu_seqlens: Tensor, states: Tensor) -> Tensor:
    """The number of the packed sequence of every token, (batch, length)."""
    batch, length = states.shape[0], states.shape[2]
    tokens = torch.arange(batch * length, dtype=torch.int32, device=states.device)
    return torch.bucketize(tokens, cu_seqlens[1:], right=True).view(batch, length)
