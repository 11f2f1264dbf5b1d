"""Call: the checked arguments of one attention call, before a layout's lists and a backend are chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backends.problem import AttentionProblem, Backend
from .backends.registry import choose_backend
from .config import TokenDilation
from .layout.layout import BlockLayout


class Call(NamedTuple):
    """What was passed to an attention call besides its layout; see AttentionProblem for the shapes."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_bias: Tensor | None
    kv_lengths: Tensor | None
    key_padding_mask: Tensor | None
    seed: Tensor | None
    is_causal: bool
    softmax_scale: float
    dropout_p: float
    dilation: TokenDilation | None

    def problem(self, layout: BlockLayout) -> AttentionProblem:
        """The problem that a backend is given, with lists on the device of q."""
        (
            q,
            k,
            v,
            block_bias,
            kv_lengths,
            key_padding_mask,
            seed,
            is_causal,
            softmax_scale,
            dropout_p,
            dilation,
        ) = self
        device, grid = q.device, layout.grid
        on_device = layout.to(device)
        rows, cols = on_device.lists(dilation)
        return AttentionProblem.made_of(
            q=q, k=k, v=v, rows=rows, cols=cols, prepared=(), block_bias=block_bias, kv_lengths=kv_lengths,
            key_padding_mask=key_padding_mask, seed=seed, block_size=grid.block_size, first_row=grid.first_row,
            q_offset=grid.q_offset, layout_heads=layout.num_heads, is_causal=is_causal, softmax_scale=softmax_scale,
            dropout_p=dropout_p, dilation=dilation, undilated=(on_device.row_lists, on_device.col_lists),
            causal_layout=grid.causal, entries=None,
        )  # fmt: skip

    def served(self, layout: BlockLayout, requested: str | None) -> tuple[AttentionProblem, Backend]:
        """The problem with all that its backend needs, and that backend: the requested one, or the first that serves it."""
        on_device = layout.to(self.q.device)
        problem = self.problem(on_device)
        backend = choose_backend(problem, requested)
        return problem.prepared_by(backend, on_device), backend

    def dense_problem(self, layout: BlockLayout) -> AttentionProblem:
        """The problem that the reference is given: a trace can make it, whatever the token dilation."""
        on_device = layout.to(self.q.device)
        undilated = self._replace(dilation=None)
        fields = undilated.problem(on_device).__dict__
        return AttentionProblem.made_of(
            **{**fields, "dilation": self.dilation, "entries": on_device._entries()}
        )


def will_be_saved(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether a backward will read the inputs of the call."""
    return torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad or (bias is not None and bias.requires_grad)
    )


def savable(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The bias, or a copy that autograd can save where it was made in inference mode."""
    if not torch.compiler.is_compiling() and bias.is_inference() and will_be_saved(q, k, v, None):
        return bias.clone()
    return bias


def unchanged(mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor | None:
    """The mask, or a copy where a backward will read it: a buffer that is refilled must not change the gradient."""
    return mask.clone() if mask is not None and will_be_saved(q, k, v, bias) else mask
