"""Call: the checked arguments of one attention call, before a layout's lists and a backend are chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backends.problem import AttentionProblem, Backend
from .backends.registry import choose_backend
from .config import TokenDilation
from .layout.layout import BlockLayout
from .sequences import sequences_of_batch

PLAIN_TYPES = (Tensor, torch.nn.Parameter)  # no subclass, which would see the operators


class Call(NamedTuple):
    """The arguments of an attention call besides its layout; see AttentionProblem for the shapes."""

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
        """The problem for a backend, with lists on the device of q."""
        c, grid, on_device = self, layout.grid, layout.to(self.q.device)
        rows, cols = on_device.lists(c.dilation)
        q_offset, sequences = sequences_of_batch(c.q, c.k.shape[1], c.is_causal, kv_lengths=c.kv_lengths)
        return AttentionProblem.made_of(
            q=c.q, k=c.k, v=c.v, grid=grid, layout_batch=layout.batch, layout_heads=layout.num_heads, rows=rows, cols=cols,
            undilated=(on_device.row_lists, on_device.col_lists), block_masks=on_device.block_masks,
            prepared=(), entries=None, q_offset=q_offset, is_causal=c.is_causal, softmax_scale=c.softmax_scale, dropout_p=c.dropout_p,
            dilation=c.dilation, block_bias=c.block_bias, key_padding_mask=c.key_padding_mask, seed=c.seed,
            sequences=sequences, softcap=0.0, attn_bias=None, alibi_slopes=None, sinks=None,
        )  # fmt: skip

    def served(self, layout: BlockLayout, requested: str | None) -> tuple[AttentionProblem, Backend]:
        """The problem with all that its backend needs, and that backend: the requested one, or the first that serves it."""
        on_device = layout.to(self.q.device)
        problem = self.problem(on_device)
        backend = choose_backend(problem, requested)
        return problem.prepared_by(backend, on_device), backend

    def dense_problem(self, layout: BlockLayout) -> AttentionProblem:
        """The problem for the reference; unlike that of `problem` it can be traced with a token dilation."""
        on_device = layout.to(self.q.device)
        undilated = self._replace(dilation=None)
        fields = undilated.problem(on_device).__dict__
        return AttentionProblem.made_of(
            **{**fields, "dilation": self.dilation, "entries": on_device._entries()}
        )
