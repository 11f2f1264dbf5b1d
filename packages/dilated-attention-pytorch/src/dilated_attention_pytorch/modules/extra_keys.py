"""Keys that every query sees besides those of the pattern: `add_bias_kv` and `add_zero_attn` of nn.MultiheadAttention."""

from __future__ import annotations

import torch
from torch import Tensor

from .pattern_attention import Attended


def with_extra_keys(
    attended: Attended,
    q: Tensor,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
) -> Attended:
    """One softmax over the keys of the pattern and the extra ones, joined through lse.

    The extra keys belong to no block and no order, so no mask and no causality hides them.

    Args:
        attended: the attention to the keys of the pattern.
        q: (batch, q_len, num_heads, head_dim).
        bias_k: a learned key, (1, 1, num_heads * head_dim), or None.
        bias_v: its value.
        add_zero_attn: also a key and a value of zeros.
        dropout_p: probability with which the weight of an extra key is dropped.

    Returns:
        Weights have one more column for each extra key.
    """
    lse, dtype = attended.lse, attended.lse.dtype
    logits = []
    if bias_k is not None:
        key = bias_k.view(q.shape[2], q.shape[3]).to(dtype)
        logits.append(torch.einsum("nlhd,hd->nhl", q.to(dtype), key) / q.shape[3] ** 0.5)
    if add_zero_attn:
        logits.append(torch.zeros_like(lse))
    total = torch.stack([lse, *logits]).logsumexp(0)
    of_pattern = (lse - total).exp()
    of_extra = [(logit - total).exp() for logit in logits]
    if dropout_p > 0.0:
        of_extra = [torch.nn.functional.dropout(each, dropout_p) for each in of_extra]

    out = attended.out.to(dtype) * of_pattern.transpose(1, 2)[..., None]
    if bias_v is not None:
        out = out + of_extra[0].transpose(1, 2)[..., None] * bias_v.view(q.shape[2], q.shape[3]).to(dtype)
    weights = attended.weights
    if weights is not None:
        columns = [each[..., None] for each in of_extra]
        weights = torch.cat([weights * of_pattern[..., None], *columns], -1)
    return Attended(out.to(attended.out.dtype), total, weights)
