"""Custom masks: a mask of tokens, documents inside a pattern, a mask of blocks, FlexAttention.

It prints the density of each layout, how many masks inside blocks it holds, and the difference from
FlexAttention with the same mask.
"""

import warnings

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention

TOKENS, HEADS, HEAD_DIM, BLOCK = 1024, 2, 32, 64
DOCUMENT = torch.repeat_interleave(torch.arange(3), torch.tensor([300, 150, 574]))


def documents(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Causal attention inside each document, in the signature of FlexAttention."""
    return (DOCUMENT[q] == DOCUMENT[k]) & (q >= k)


def show(name: str, layout: BlockLayout) -> None:
    stats = layout.stats()
    print(f"{name}: {stats.density:.0%} of the blocks, {stats.num_masks} masks in {stats.num_bytes:,} bytes")


def main() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD_DIM) for _ in range(3))

    # Any mask of tokens. The same in FlexAttention; without compilation it computes every pair of tokens.
    layout = BlockLayout.from_mask_mod(documents, TOKENS, block_size=BLOCK)
    show("documents", layout)
    out = block_sparse_attention(q, k, v, layout)
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    block_mask = create_block_mask(documents, None, None, TOKENS, TOKENS, device="cpu")
    flex = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask).transpose(1, 2)
    difference = (out - flex).abs().max().item()
    print(f"FlexAttention with the same mask: largest difference {difference:.1e}")
    assert difference < 1e-5

    # A BlockMask becomes a layout, and a layout a BlockMask.
    from_flex = BlockLayout.from_block_mask(block_mask, block_size=BLOCK)
    assert torch.equal(block_sparse_attention(q, k, v, from_flex), out)
    assert torch.equal(from_flex.to_block_mask().to_dense(), layout.to_block_mask().to_dense())

    # Documents inside a pattern: the pairs that both keep.
    config = SparsePatternConfig(sparsity_ratio=0.2, block_size=BLOCK)
    pattern = BlockLayout.from_config(config, TOKENS, causal=True)
    both = BlockLayout.from_mask_mod(documents, TOKENS, block_size=BLOCK, causal=True, within=pattern)
    assert block_sparse_attention(q, k, v, both, is_causal=True).shape == q.shape
    show("documents inside a pattern", both)

    # Whole blocks, one mask per head: the first head sees near blocks, the second far ones.
    block = torch.arange(TOKENS // BLOCK)
    near = (block[:, None] - block[None, :]).abs() <= 1
    per_head = BlockLayout.from_dense(torch.stack([near, ~near]), BLOCK)
    assert block_sparse_attention(q, k, v, per_head).shape == q.shape
    show("near and far heads", per_head)


if __name__ == "__main__":
    main()
