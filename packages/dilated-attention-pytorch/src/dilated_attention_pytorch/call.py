"""Call: the checked arguments of one attention call, before a layout's lists and a backend are chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backends.problem import AttentionProblem, Backend
from .backends.registry import choose_backend
from .config import TokenDilation
from .layout.layout import BlockLayout
from .layout.lists import BlockLists
from .sequences import Sequences

PLAIN_TYPES = (Tensor, torch.nn.Parameter)  # no subclass, which would see the operators


class Call(NamedTuple):
    """The arguments of an attention call besides its layout; see AttentionProblem for the shapes."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_bias: Tensor | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    seed: Tensor | None
    is_causal: bool
    softmax_scale: float
    softcap: float
    dropout_p: float
    dilation: TokenDilation | None
    q_offset: int = 0
    sequences: Sequences | None = None
    key_padding_mask: Tensor | None = None
    attn_bias: Tensor | None = None
    deterministic: bool = True

    def problem(self, layout: BlockLayout) -> AttentionProblem:
        """The problem for a backend, with lists on the device of q."""
        on_device = self.cut_to_size(layout).to(self.q.device)
        return self.problem_of(on_device, on_device.lists(self.dilation))

    def problem_of(
        self, layout: BlockLayout, lists: tuple[BlockLists, BlockLists], entries: Tensor | None = None
    ) -> AttentionProblem:
        """The problem with these row and column lists of a layout on the device of q."""
        c, (rows, cols) = self, lists
        return AttentionProblem.made_of(
            q=c.q, k=c.k, v=c.v, grid=layout.grid, layout_batch=layout.batch, layout_heads=layout.num_heads, rows=rows,
            cols=cols, undilated=(layout.row_lists, layout.col_lists), block_masks=layout.block_masks, prepared=(),
            entries=entries, q_offset=c.q_offset, is_causal=c.is_causal, softmax_scale=c.softmax_scale,
            softcap=c.softcap, dropout_p=c.dropout_p, dilation=c.dilation, block_bias=c.block_bias, sinks=c.sinks,
            attn_bias=c.attn_bias, alibi_slopes=c.alibi_slopes, key_padding_mask=c.key_padding_mask, seed=c.seed,
            sequences=c.sequences, deterministic=c.deterministic, of_pattern=layout.configs is not None,
        )  # fmt: skip

    def cut_to_size(self, layout: BlockLayout) -> BlockLayout:
        """The layout, of a square call on a larger square one its prefix: every backend serves exact layouts.

        A block has another place in the prefix, so a call with a block_bias keeps the layout as it is.
        """
        c, grid, length = self, layout.grid, self.q.shape[1]
        if length in (0, grid.q_len) or length != c.k.shape[1] or c.q_offset != 0 or not grid.is_square:
            return layout
        if c.block_bias is not None or not (c.sequences is None or c.sequences.only_lengths):
            return layout
        if layout.is_exact and (layout.has_prefix(length) or not is_captured(c.q)):
            return layout.prefix(length)
        return layout

    def served(self, layout: BlockLayout, requested: str | None) -> tuple[AttentionProblem, Backend]:
        """The problem with all that its backend needs, and that backend: the requested one, or the first that serves it."""
        on_device = self.cut_to_size(layout).to(self.q.device)
        problem = self.problem(on_device)
        backend = choose_backend(problem, requested)
        return problem.prepared_by(backend, on_device), backend

    def dense_problem(self, layout: BlockLayout) -> AttentionProblem:
        """The problem for the reference; unlike that of `problem` it can be traced with a token dilation."""
        on_device = layout.to(self.q.device)
        return self.problem_of(on_device, on_device.lists(), on_device.entries())


def is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is recording, in which no layout can be cut."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
