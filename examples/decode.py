"""Decoding with a KV cache: a prompt in two chunks, then token by token.

Causal patterns do not change when the sequence grows, so every step gives the same result as one
full forward pass. The script prints the largest difference.
"""

import torch
from torch import Tensor

from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64  # grouped-query attention: four query heads share a key-value head
PROMPT, STEPS = 3000, 40


class KVCache:
    """Buffers for the keys and values of one layer; `append` returns everything written so far."""

    def __init__(self, capacity: int) -> None:
        self.k = torch.empty(1, capacity, KV_HEADS, HEAD_DIM)
        self.v = torch.empty(1, capacity, KV_HEADS, HEAD_DIM)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[1]
        self.k[:, self.length : end] = k
        self.v[:, self.length : end] = v
        self.length = end
        return self.k[:, :end], self.v[:, :end]


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    attention = create_block_sparse_attention(
        variant="base", sparse_config=SparsePatternConfig(sparsity_ratio=0.05)
    ).eval()
    total = PROMPT + STEPS
    q = torch.randn(1, total, HEADS, HEAD_DIM)
    k, v = (torch.randn(1, total, KV_HEADS, HEAD_DIM) for _ in range(2))

    cache = KVCache(total)
    outputs = []
    chunks = [1000, 2000] + [1] * STEPS  # the prompt in two chunks, then one token a step
    for new_q, new_k, new_v in zip(q.split(chunks, 1), k.split(chunks, 1), v.split(chunks, 1)):
        keys, values = cache.append(new_k, new_v)
        outputs.append(attention(new_q, keys, values, is_causal=True))  # the last query sits at the last key

    full = attention(q, k, v, is_causal=True)
    difference = (torch.cat(outputs, dim=1) - full).abs().max().item()
    print(f"{total} tokens in {len(chunks)} calls, largest difference to the full forward {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
