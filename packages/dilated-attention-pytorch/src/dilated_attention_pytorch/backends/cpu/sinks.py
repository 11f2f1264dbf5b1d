"""Sinks: a logit per head that only joins the denominator, added to the results of an attention without them."""

from __future__ import annotations

import torch
from torch import Tensor


def add_sinks(sinks: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """out (batch, q_len, heads, dim), in place, and lse (batch, heads, q_len) with sinks (heads,)."""
    with_sinks = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    sees_none = lse == -torch.inf
    share = (lse - with_sinks).exp_().masked_fill_(sees_none, 0.0)
    out.mul_(share.transpose(1, 2).unsqueeze(-1))
    return out, with_sinks.masked_fill_(sees_none, -torch.inf)


def grad_of_sinks(
    sinks: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Tensor:
    """The gradient (heads,) in the dtype of lse, given out and lse with sinks."""
    delta = (grad_out.to(lse.dtype) * out).sum(-1).transpose(1, 2)  # (batch, heads, q_len)
    if grad_lse is not None:
        delta = delta - grad_lse
    sees_none = lse == -torch.inf
    weight = (sinks.to(lse.dtype)[:, None] - lse).exp_()
    return -(weight * delta).masked_fill_(sees_none, 0.0).sum((0, 2))
