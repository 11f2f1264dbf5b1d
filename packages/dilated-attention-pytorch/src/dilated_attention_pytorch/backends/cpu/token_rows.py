"""TokenRows: gathers and scatters tokens of a tensor with any strides, without copying the whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from .scratch import Scratch


class TokenRows:
    """A view of a (batch, tokens, heads, dim) tensor as a matrix.

    If `is_wide`, a matrix row holds all heads of a token, otherwise one head of a token. `matrix` is None if the
    strides allow no such view; gathering then works too, but is slower.

    The methods take tokens as (tiles, n) and heads as (1 or tiles, n_heads); heads are ignored if rows are wide.
    """

    def __init__(self, x: Tensor, is_wide: bool, scratch: Scratch) -> None:
        self.x = x
        self.scratch = scratch
        self.is_wide = False
        self.matrix: Tensor | None = None
        batch, tokens, heads, dim = x.shape
        steps = [step if size > 1 else 0 for size, step in zip(x.shape, x.stride(), strict=True)]
        if dim > 1 and steps[3] != 1:
            return
        if is_wide and steps[2] in (0, dim) and not any(step % (heads * dim) for step in steps[:2]):
            self.is_wide = heads == 1 or steps[2] == dim
        width = heads * dim if self.is_wide else dim
        if any(step % width for step in steps[:3]) and not self.is_wide:
            return
        self.batch_step, self.token_step, self.head_step = (step // width for step in steps[:3])
        last = (batch - 1) * self.batch_step + (tokens - 1) * self.token_step
        if not self.is_wide:
            last += (heads - 1) * self.head_step
        self.matrix = x.as_strided((last + 1, width), (width, 1))

    def index(self, tokens: Tensor, batches: range, heads: Tensor, by_head: bool) -> Tensor:
        """Matrix rows, int64, flat, ordered by (batch, tile, token, head), or (batch, tile, head, token) if `by_head`."""
        index = tokens if self.token_step == 1 else tokens * self.token_step
        if not self.is_wide:
            start = heads * self.head_step
            index = (
                index[:, None, :] + start[:, :, None] if by_head else index[:, :, None] + start[:, None, :]
            )
        if len(batches) > 1:
            starts = torch.arange(batches.start, batches.stop, device="cpu") * self.batch_step
            index = starts.view(-1, *(1,) * index.dim()) + index
        elif batches.start:
            index = index + batches.start * self.batch_step
        return index.flatten()

    def gather(self, name: str, tokens: Tensor, batches: range, heads: Tensor) -> Tensor:
        """Copy the tokens to the scratch buffer `name`, in its dtype: (batches * tiles, n_heads, n, dim)."""
        n, n_heads, dim = tokens.shape[1], heads.shape[1], self.x.shape[3]
        if self.matrix is None:
            batch = torch.arange(batches.start, batches.stop, device="cpu").view(-1, 1, 1, 1)
            return self.x[batch, tokens[:, None, :], heads[:, :, None]].flatten(0, 1).to(self.scratch.dtype)
        rows = self.scratch.gather(name, self.matrix, self.index(tokens, batches, heads, by_head=True))
        if self.is_wide:
            return rows.view(-1, n, n_heads, dim).transpose(1, 2)
        return rows.view(-1, n_heads, n, dim)

    def put(self, tokens: Tensor, batches: range, heads: Tensor, values: Tensor) -> None:
        """Write values (batches * tiles, n, n_heads, dim) to the tokens of a contiguous tensor."""
        assert self.matrix is not None
        index = self.index(tokens, batches, heads, by_head=False)
        self.matrix.index_copy_(0, index, values.reshape(index.numel(), -1))

    def add(self, tokens: Tensor, batches: range, heads: Tensor, values: Tensor) -> None:
        """Add values (batches * tiles, n, n_heads, dim) to the tokens of a contiguous tensor."""
        assert self.matrix is not None
        index = self.index(tokens, batches, heads, by_head=False)
        self.matrix.index_add_(0, index, values.reshape(index.numel(), -1))
