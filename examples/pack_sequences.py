"""Packing (varlen): sequences of different lengths in one call, with no attention between them.

Each document starts on a new block and has the blocks that the pattern gives for its length, so its
results are the same as on its own. It prints the share of padding tokens and the largest difference.
"""

import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    create_block_sparse_attention,
)

CONFIG = SparsePatternConfig(sparsity_ratio=0.1)
LENGTHS = [700, 64, 1500, 333]
HEADS, HEAD_DIM = 4, 32


class Packing:
    """The layout of documents side by side, and where their tokens go."""

    def __init__(self, lengths: list[int], config: SparsePatternConfig) -> None:
        size = config.block_size
        own = [BlockLayout.from_config(config, length, causal=True).to_dense() for length in lengths]
        mask = torch.block_diag(*(blocks.int() for blocks in own)).bool()
        self.layout = BlockLayout.from_dense(mask, size, causal=True)
        starts = [0, *torch.tensor([len(blocks) * size for blocks in own]).cumsum(0).tolist()]
        self.places = torch.cat([torch.arange(length) + start for length, start in zip(lengths, starts)])
        self.padded_len = starts[-1]

    def spread(self, x: Tensor) -> Tensor:
        """(tokens, heads, head_dim), document after document -> (1, padded_len, heads, head_dim)."""
        return x.new_zeros(1, self.padded_len, *x.shape[1:]).index_copy(1, self.places, x.unsqueeze(0))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention inside each document; no query sees the padding, which comes later."""
        out = block_sparse_attention(*(self.spread(x) for x in (q, k, v)), self.layout, is_causal=True)
        return out[0, self.places]


def main() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), HEADS, HEAD_DIM) for _ in range(3))
    packing = Packing(LENGTHS, CONFIG)
    out = packing.attend(q, k, v)

    attention = create_block_sparse_attention(variant="base", sparse_config=CONFIG)
    alone = [
        attention(*(x.unsqueeze(0) for x in document), is_causal=True)[0]
        for document in zip(q.split(LENGTHS), k.split(LENGTHS), v.split(LENGTHS))
    ]
    difference = (out - torch.cat(alone)).abs().max().item()
    padding = 1 - sum(LENGTHS) / packing.padded_len
    print(f"{len(LENGTHS)} documents, {padding:.0%} padding")
    print(f"largest difference from separate calls: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
