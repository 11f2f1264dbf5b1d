"""GatheredKeys: keys or values of decoding queries, gathered head by head."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .scratch import Scratch


@lru_cache(maxsize=64)
def cached_arange(n: int) -> Tensor:
    """0 to n - 1, int64."""
    with torch.inference_mode(False):
        return torch.arange(n, device="cpu")


def kv_heads(layout_heads: int, num_heads: int, num_kv_heads: int) -> Tensor:
    """The kv head of every key list, int64 (n_heads, 1): a list per kv head, or per query head with a layout."""
    if layout_heads <= num_kv_heads:
        return cached_arange(num_kv_heads).view(-1, 1)
    return cached_arange(num_heads).view(-1, 1) // (num_heads // num_kv_heads)


class GatheredKeys:
    """Gathers k or v for pairs of a batch element and a key list.

    `tokens` are those of every pair, `heads` (n_heads, 1) their kv heads and `batch` (n, 1, 1) their batch elements (or pages,
    for every token), or 0; together they broadcast to (n, n_heads, n_keys). `like`: GatheredKeys whose index is reused if the strides are equal.
    """

    def __init__(
        self,
        name: str,
        x: Tensor,
        batch: Tensor | int,
        heads: Tensor,
        tokens: Tensor,
        scratch: Scratch,
        like: GatheredKeys | None,
    ) -> None:
        self.name, self.x, self.scratch = name, x, scratch
        self.batch, self.heads, self.tokens = batch, heads, tokens
        dim = x.shape[3]
        # Row of each (batch element, key list, token) in `self.rows`; None if the strides allow no such matrix.
        self.index: Tensor | None = None
        batch_step, token_step, head_step, step = x.stride()
        if step != 1 or batch_step % dim or token_step % dim or head_step % dim:
            return
        sizes = zip(x.shape[:3], x.stride(), strict=False)
        n_rows = 1 + sum((size - 1) * step for size, step in sizes) // dim
        self.rows = x.as_strided((n_rows, dim), (dim, 1))
        if like is not None and like.x.stride() == x.stride():
            self.index = like.index
            return
        index = tokens if token_step == dim else tokens * (token_step // dim)
        index = torch.add(index, heads, alpha=head_step // dim)
        if isinstance(batch, Tensor):
            index = torch.add(index, batch, alpha=batch_step // dim)
        self.index = index.view(-1, tokens.shape[-1])

    def gather(self, pairs: slice, n_keys: int) -> Tensor:
        """The first `n_keys` of some pairs, (pairs, 1, n_keys, dim), in scratch memory."""
        if self.index is not None:
            index = self.index[pairs]
            if n_keys < index.shape[1]:
                index = index[:, :n_keys]
            rows = self.scratch.gather(self.name, self.rows, index)
            return rows.view(-1, 1, n_keys, self.x.shape[3])
        places = (self.batch, self.tokens, self.heads)
        tensors = torch.broadcast_tensors(*(torch.as_tensor(each, device="cpu") for each in places))
        batch, tokens, heads = (each.reshape(-1, each.shape[-1])[pairs, :n_keys] for each in tensors)
        return self.x[batch, tokens, heads].to(self.scratch.dtype).unsqueeze(1)
