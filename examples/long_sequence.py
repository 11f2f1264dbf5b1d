"""A long sequence: the cost of a pattern, computed in advance, and a run on the CPU.

It prints blocks, density and layers to full coverage for growing lengths, then the time of one
causal forward.
"""

import time

import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention

CONFIG = SparsePatternConfig(sparsity_ratio=0.01, block_size=128)
HEADS, HEAD_DIM = 2, 64


def main() -> None:
    print("   tokens   blocks  density  layers to full coverage")
    for tokens in (16_384, 65_536, 262_144):
        layout = BlockLayout.from_config(CONFIG, tokens, causal=True)
        hops = layout.hops_to_full_coverage()
        print(f"{tokens:9,} {layout.num_active_blocks:8,} {layout.density:8.1%} {hops:9}")

    tokens = 32_768
    layout = BlockLayout.from_config(CONFIG, tokens, causal=True)
    q, k, v = (torch.randn(1, tokens, HEADS, HEAD_DIM) for _ in range(3))
    start = time.perf_counter()
    out = block_sparse_attention(q, k, v, layout, is_causal=True)
    seconds = time.perf_counter() - start
    scores = HEADS * tokens**2 * 4 / 2**30
    print(f"{tokens:,} tokens on the CPU: {seconds:.2f} s; the score matrix would be {scores:.0f} GiB")
    assert out.shape == q.shape
    assert out.isfinite().all()


if __name__ == "__main__":
    main()
