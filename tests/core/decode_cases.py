"""Data for the tests of decoding: caches, contiguous or of pages, with NaN behind the lengths."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_decode,
)
from dilated_attention_pytorch.backends.reference import attention_reference
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.layout.lists import BlockMasks, packed_masks

BLOCK, KV_HEADS, HEAD_DIM, V_HEAD_DIM = 16, 2, 16, 24


class Sequence(NamedTuple):
    """A batch of whole sequences: what the cache will hold, and the queries of all positions."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: BlockLayout

    def rows(self, **scores: Any) -> tuple[Tensor, Tensor]:
        """out and lse of the full causal forward, by the definition."""
        problem = make_problem(self.q, self.k, self.v, self.layout, is_causal=True)
        scores = {name: value for name, value in scores.items() if value is not None}
        return attention_reference(dataclasses.replace(problem, **scores))


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def layout_of(
    n_tokens: int,
    heads: int = 1,
    block: int = BLOCK,
    ratio: float = 0.3,
    batch: int = 1,
    with_masks: bool = False,
) -> BlockLayout:
    """A causal layout whose heads, and batch elements, differ."""
    ratios = [ratio + 0.15 * i for i in range(heads * batch)]
    configs = [SparsePatternConfig(block_size=block, sparsity_ratio=min(1.0, each)) for each in ratios]
    layout = BlockLayout.from_config(configs[0] if len(configs) == 1 else configs, n_tokens, causal=True)
    if with_masks:
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(-1, 3, (layout.num_active_blocks,), generator=generator, dtype=torch.int32)
        table = packed_masks(torch.rand(3, block, block, generator=generator) < 0.5)
        layout = dataclasses.replace(layout, block_masks=BlockMasks(ids, table))
    if batch > 1:  # the lists of a layout of batch * heads heads
        layout = dataclasses.replace(layout, num_heads=heads, batch=batch, configs=None)
    return layout


def sequence(
    layout: BlockLayout,
    batch: int = 3,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    kv_heads: int = KV_HEADS,
) -> Sequence:
    n_tokens = layout.kv_len
    return Sequence(
        torch.randn(batch, n_tokens, heads, HEAD_DIM).to(dtype),
        torch.randn(batch, n_tokens, kv_heads, HEAD_DIM).to(dtype),
        torch.randn(batch, n_tokens, kv_heads, V_HEAD_DIM).to(dtype),
        layout,
    )


def last_queries(x: Tensor, lengths: Tensor, q_len: int) -> Tensor:
    """The tokens that end at the lengths, (batch, q_len, ...); zeros for those before the first."""
    place = lengths.long()[:, None] - q_len + torch.arange(q_len, device=x.device)
    element = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[element, place.clamp(min=0)].masked_fill((place < 0)[..., None, None], 0.0)


def last_lse(lse: Tensor, lengths: Tensor, q_len: int) -> Tensor:
    """`last_queries` of lse (batch, num_heads, tokens); -inf for those before the first."""
    place = lengths.long()[:, None] - q_len + torch.arange(q_len, device=lse.device)
    index = place.clamp(min=0)[:, None].expand(-1, lse.shape[1], -1)
    return lse.gather(2, index).masked_fill((place < 0)[:, None], -torch.inf)


def cache_of(x: Tensor, lengths: Tensor, max_len: int, starts: Tensor | None = None) -> Tensor:
    """A contiguous cache of the first tokens of every element, from its start on; NaN elsewhere."""
    cache = torch.full((x.shape[0], max_len, *x.shape[2:]), torch.nan, dtype=x.dtype)
    begin = torch.zeros_like(lengths) if starts is None else starts
    for b, (first, end) in enumerate(zip(begin.tolist(), lengths.tolist(), strict=True)):
        cache[b, first:end] = x[b, : end - first]
    return cache


def paged(cache: Tensor, page_size: int) -> Tensor:
    """The contiguous cache in pages, in the order of `table_of`; one page is not used."""
    batch, max_len = cache.shape[:2]
    n_pages = -(-max_len // page_size)
    filled = torch.full((batch, n_pages * page_size, *cache.shape[2:]), torch.nan, dtype=cache.dtype)
    filled[:, :max_len] = cache
    pages = torch.full((batch * n_pages + 1, page_size, *cache.shape[2:]), torch.nan, dtype=cache.dtype)
    pages[table_of(batch, n_pages).flatten().long()] = filled.unflatten(1, (n_pages, page_size)).flatten(0, 1)
    return pages


def table_of(batch: int, n_pages: int) -> Tensor:
    """Pages in no order, int32 (batch, n_pages)."""
    order = torch.randperm(batch * n_pages + 1, generator=torch.Generator().manual_seed(4))
    return order[: batch * n_pages].view(batch, n_pages).to(torch.int32)


class RandomCase(NamedTuple):
    """A call at ratio 0.3 with lengths that were drawn."""

    n_tokens: int
    lengths: list[int]
    q_len: int
    page_size: int | None
    spare: int
    heads: int
    block: int

    def rows(self, device: str) -> tuple[Tensor, Tensor]:
        """The output of decoding on a device, and what the full forward has there, on the CPU."""
        ends = int32(*(min(length, self.n_tokens) for length in self.lengths))
        whole = sequence(layout_of(self.n_tokens, self.heads, self.block), batch=len(self.lengths))
        max_len = self.n_tokens + self.spare
        k, v = (cache_of(x, ends, max_len) for x in (whole.k, whole.v))
        table = None
        if self.page_size is not None:
            table = table_of(len(self.lengths), -(-max_len // self.page_size)).to(device)
            k, v = paged(k, self.page_size), paged(v, self.page_size)
        q = last_queries(whole.q, ends, self.q_len).to(device)
        layout = whole.layout.to(device)
        out = block_sparse_decode(q, k.to(device), v.to(device), layout, ends.to(device), table)
        full = block_sparse_attention(whole.q, whole.k, whole.v, whole.layout, is_causal=True, backend="cpu")
        return out.cpu(), last_queries(full, ends, self.q_len)


RANDOM_CASES = st.builds(
    RandomCase,
    n_tokens=st.integers(1, 200),
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    q_len=st.integers(1, 16),
    page_size=st.sampled_from([None, 1, 16, 48, 64]),
    spare=st.integers(0, 40),
    heads=st.sampled_from([1, 2, 4]),
    block=st.sampled_from([16, 64]),
)
