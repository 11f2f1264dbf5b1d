"""Saving and loading: the weights, the pattern as JSON, and a custom layout (needs safetensors).

The attention has no weights and adds nothing to a state dict, so checkpoints made with dense
attention load unchanged. It prints what was saved and checks that a loaded model gives the same
results.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    create_block_sparse_attention,
)

DIM, HEADS = 64, 4


class Attention(nn.Module):
    """Projections around the attention."""

    def __init__(self, config: SparsePatternConfig) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(DIM, 3 * DIM)
        self.from_heads = nn.Linear(DIM, DIM)
        self.attention = create_block_sparse_attention(variant="base", sparse_config=config)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        return self.from_heads(self.attention(q, k, v, is_causal=True).flatten(2))


def main() -> None:
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    x = torch.randn(1, 500, DIM)

    # Save the weights as usual; the pattern is data, so it goes into your configuration file.
    config = SparsePatternConfig(sparsity_ratio=0.1, dilation_rates=[1, 2, 4, 8])
    model = Attention(config).eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    (folder / "attention.json").write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
    print("in the state dict:", ", ".join(model.state_dict()))

    settings = json.loads((folder / "attention.json").read_text(encoding="utf-8"))
    loaded_config = SparsePatternConfig(**settings)
    assert loaded_config == config
    loaded = Attention(loaded_config).eval()
    loaded.load_state_dict(torch.load(folder / "weights.pt"))
    assert torch.equal(loaded(x), model(x))

    # A custom layout: lists, masks and lengths in one file of safetensors.
    layout = BlockLayout.from_mask_mod(lambda b, h, q, k: (q >= k) & (q - k < 100), 512)
    layout.save(folder / "layout.safetensors")
    loaded_layout = BlockLayout.load(folder / "layout.safetensors")
    q, k, v = (torch.randn(1, 512, HEADS, 16) for _ in range(3))
    same, original = (block_sparse_attention(q, k, v, each) for each in (loaded_layout, layout))
    assert torch.equal(same, original)
    print("loaded: same results from the weights and the pattern, and from the layout")


if __name__ == "__main__":
    main()
