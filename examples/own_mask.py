"""Custom masks: any set of blocks as a layout, one mask per head, and the same blocks in FlexAttention.

It prints the density of each layout and the difference from FlexAttention.
"""

import warnings

import torch
from torch.nn.attention.flex_attention import flex_attention

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention

TOKENS, HEADS, HEAD_DIM, BLOCK = 1024, 2, 32, 64


def main() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD_DIM) for _ in range(3))
    block = torch.arange(TOKENS // BLOCK)
    distance = block[:, None] - block[None, :]

    # A block mask: the diagonal and every fifth block on both sides of it.
    stripes = distance.abs() % 5 == 0
    layout = BlockLayout.from_dense(stripes, BLOCK)
    print(f"stripes: {layout.density:.0%} of the blocks, {layout.num_active_blocks} in all")
    out = block_sparse_attention(q, k, v, layout)

    # The same blocks in FlexAttention, and back. Without compilation it computes every pair of tokens.
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    block_mask = layout.to_block_mask()
    flex = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask).transpose(1, 2)
    difference = (out - flex).abs().max().item()
    print(f"FlexAttention on the same blocks: largest difference {difference:.1e}")
    assert difference < 1e-5
    assert torch.equal(BlockLayout.from_block_mask(block_mask).to_dense(), layout.to_dense())

    # One mask per head: the first head sees near blocks, the second far ones.
    near = distance.abs() <= 1
    per_head = BlockLayout.from_dense(torch.stack([near, ~near]), BLOCK)
    assert block_sparse_attention(q, k, v, per_head).shape == q.shape
    print(f"per head: {[sum(map(len, per_head.rows(head))) for head in range(HEADS)]} blocks")

    # A pattern of the library plus your own blocks: a causal one that also keeps the first block.
    config = SparsePatternConfig(sparsity_ratio=0.2, block_size=BLOCK)
    kept = BlockLayout.from_config(config, TOKENS, causal=True).to_dense()
    kept[:, 0] = True
    with_first = BlockLayout.from_dense(kept, BLOCK, causal=True)
    assert block_sparse_attention(q, k, v, with_first, is_causal=True).shape == q.shape
    print(f"pattern plus first block: {with_first.density:.0%} of the causal blocks")


if __name__ == "__main__":
    main()
