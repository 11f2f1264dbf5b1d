"""Decoding with a KV cache: a batch of prompts of different lengths, in chunks, then token by token.

One causal layout, for the longest length, serves every step, and every step gives the rows of one full
forward pass. The script prints the largest difference from that, for a contiguous and for a paged cache.
"""

import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_decode,
)

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64  # grouped-query attention: four query heads share a key-value head
PROMPTS, STEPS, CHUNK = [1500, 700], 20, 512
CAPACITY, PAGE = 2048, 64


class PagedCache:
    """Keys and values in pages: `table` says which pages a sequence has, `lengths` how many tokens."""

    def __init__(self, batch: int) -> None:
        n_pages = CAPACITY // PAGE
        # in no order, as after many requests; a server hands them out as they are needed
        self.table = torch.randperm(batch * n_pages).view(batch, n_pages).int()
        self.k = torch.zeros(batch * n_pages, PAGE, KV_HEADS, HEAD_DIM)
        self.v = torch.zeros(batch * n_pages, PAGE, KV_HEADS, HEAD_DIM)
        self.lengths = torch.zeros(batch, dtype=torch.int32)

    def append(self, element: int, k: Tensor, v: Tensor) -> None:
        """Write (tokens, kv heads, head_dim) of one sequence."""
        at = self.lengths[element] + torch.arange(len(k))
        pages = self.table[element, at // PAGE]
        self.k[pages, at % PAGE], self.v[pages, at % PAGE] = k, v
        self.lengths[element] += len(k)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    config = SparsePatternConfig(sparsity_ratio=0.1)
    layout = BlockLayout.from_config(config, CAPACITY, causal=True)  # once, for all lengths and steps
    batch, total = len(PROMPTS), max(PROMPTS) + STEPS
    q = torch.randn(batch, total, HEADS, HEAD_DIM)
    k, v = (torch.randn(batch, total, KV_HEADS, HEAD_DIM) for _ in range(2))
    full = block_sparse_attention(q, k, v, layout, is_causal=True)

    # The prompts in chunks, into a contiguous cache with room to spare.
    k_cache, v_cache = (torch.zeros(batch, CAPACITY, KV_HEADS, HEAD_DIM) for _ in range(2))
    lengths = torch.tensor(PROMPTS, dtype=torch.int32)
    chunks = []
    for start in range(0, max(PROMPTS), CHUNK):
        end = min(start + CHUNK, max(PROMPTS))
        k_cache[:, start:end], v_cache[:, start:end] = k[:, start:end], v[:, start:end]
        written = lengths.clamp(max=end)  # shorter prompts end earlier; what is behind them does not count
        chunk = q[:, start:end]
        chunks.append(
            block_sparse_attention(
                chunk, k_cache, v_cache, layout, is_causal=True, q_offset=start, kv_lengths=written
            )
        )
    prefilled = torch.cat(chunks, dim=1)
    differences = [(prefilled[i, :n] - full[i, :n]).abs().max() for i, n in enumerate(PROMPTS)]
    print(f"prompts in {len(chunks)} chunks: largest difference {max(differences).item():.1e}")

    # Token by token, every sequence at its own length.
    pages = PagedCache(batch)
    for i, length in enumerate(PROMPTS):
        pages.append(i, k[i, :length], v[i, :length])
    for _ in range(STEPS):
        now = (torch.arange(batch), lengths.long())
        k_cache[now], v_cache[now] = k[now], v[now]
        for i in range(batch):
            pages.append(i, k[i, lengths[i], None], v[i, lengths[i], None])
        lengths += 1
        newest = q[now].unsqueeze(1)  # (batch, 1, heads, head_dim)
        out = block_sparse_decode(newest, k_cache, v_cache, layout, lengths)
        paged = block_sparse_decode(newest, pages.k, pages.v, layout, pages.lengths, pages.table)
        differences += [(x[:, 0] - full[now]).abs().max() for x in (out, paged)]
    print(f"{STEPS} steps to {lengths.tolist()} tokens: largest difference {max(differences).item():.1e}")
    assert max(differences) < 1e-5


if __name__ == "__main__":
    main()
