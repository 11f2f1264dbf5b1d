"""A training loop with mixed precision (AMP), torch.compile and activation checkpointing.

Two causal layers learn to continue a text, on the CPU or on the GPU. It prints the loss before and
after training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILER = "inductor" if DEVICE == "cuda" else "aot_eager"  # starts at once and needs no C++ compiler
DIM, HEADS, LENGTH, BATCH, STEPS = 64, 4, 256, 4, 25


class Layer(nn.Module):
    """Attention and an MLP, each with its residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM))
        self.attention = create_block_sparse_attention(
            variant="base", sparse_config=SparsePatternConfig(sparsity_ratio=0.25, block_size=16)
        )
        self.from_heads = nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(
            nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        x = x + self.from_heads(self.attention(q, k, v, is_causal=True).flatten(2))
        return x + self.mlp(x)


class Model(nn.Module):
    """Bytes in, scores of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, DIM)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(DIM, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)  # the backward computes the layer again
        return self.head(x)


def main() -> None:
    torch.manual_seed(0)
    model = Model().to(DEVICE)
    compiled = torch.compile(model, backend=COMPILER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 40), device=DEVICE)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,)).tolist()
        batch = torch.stack([text[start : start + LENGTH + 1] for start in starts])
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            logits = compiled(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps on {DEVICE}")
    assert losses[-1] < losses[0] / 2


if __name__ == "__main__":
    main()
