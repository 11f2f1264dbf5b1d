"""Packing (varlen): documents of different lengths in one tensor and one call, without padding.

No document sees another, and each gives what it gives alone, forward and backward. The script trains a
small layer on packed documents, and prints the loss and the largest differences from separate calls.
"""

import torch
from torch import Tensor, nn

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)

DIM, HEADS, LONGEST = 64, 4, 2048
LAYOUT = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.1), LONGEST, causal=True)


class Attention(nn.Module):
    """Causal attention inside of packed documents."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(DIM, 3 * DIM)
        self.from_heads = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """x (tokens, dim): document after document; cu_seqlens: where each begins, and the end."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(1)
        # LONGEST is a bound: the greatest length need not be known
        out = block_sparse_attention_varlen(
            q, k, v, LAYOUT, cu_seqlens, cu_seqlens, LONGEST, LONGEST, is_causal=True
        )
        return self.from_heads(out.flatten(1))

    def one_document(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(1)
        out = block_sparse_attention(q[None], k[None], v[None], LAYOUT, is_causal=True)
        return self.from_heads(out[0].flatten(1))


def main() -> None:
    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        lengths = torch.randint(1, 1000, (6,))  # other lengths in every step, the same layout
        cu_seqlens = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        x = torch.randn(int(lengths.sum()), DIM)
        loss = (model(x, cu_seqlens) - x.roll(1, 0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{len(lengths)} documents of {lengths.tolist()} tokens, loss {loss.item():.3f}")

    packed = model(x, cu_seqlens)
    alone = torch.cat([model.one_document(document) for document in x.split(lengths.tolist())])
    difference = (packed - alone).abs().max().item()
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in (packed, alone)]
    of_gradients = max(((a - b).norm() / b.norm()).item() for a, b in zip(*gradients))
    print(f"largest difference from separate calls: {difference:.1e}")
    print(f"of gradients, relative to their norm: {of_gradients:.1e}")
    assert max(difference, of_gradients) < 1e-5


if __name__ == "__main__":
    main()
