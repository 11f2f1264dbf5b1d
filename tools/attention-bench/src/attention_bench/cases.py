"""What is timed: shapes, pattern and dtype of one attention call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One attention call; `density` is the share of blocks kept."""

    seqlen: int
    heads: int
    head_dim: int
    block: int
    density: float
    batch: int = 1
    kv_heads: int | None = None
    pattern: str = "dilated_sparse"
    causal: bool = False
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads must divide heads {self.heads}, got {self.kv_heads}")

    @property
    def num_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def label(self) -> str:
        heads = f"{self.heads}" if self.num_kv_heads == self.heads else f"{self.heads}:{self.num_kv_heads}"
        causal = " causal" if self.causal else ""
        return f"{self.seqlen:,} tokens, {heads} x {self.head_dim}, block {self.block}, {self.density:.2%}{causal}"

    def config(self) -> SparsePatternConfig:
        """The pattern; dilated_sparse with the rates 1, 2, 4, 8."""
        rates = (1, 2, 4, 8) if self.pattern == "dilated_sparse" else None
        global_tokens = self.block if self.pattern == "global_local" else 0
        return SparsePatternConfig(
            self.pattern,  # type: ignore[arg-type]
            block_size=self.block,
            sparsity_ratio=self.density,
            dilation_rates=rates,
            global_tokens=global_tokens,
        )

    def layout(self, device: str) -> BlockLayout:
        return BlockLayout.from_config(self.config(), self.seqlen, causal=self.causal, device=device)

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the gradient of out, (batch, seqlen, heads, head_dim), the same for every peer."""
        generator = torch.Generator(device).manual_seed(0)

        def make(heads: int) -> Tensor:
            shape = (self.batch, self.seqlen, heads, self.head_dim)
            return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[self.dtype])

        return make(self.heads), make(self.num_kv_heads), make(self.num_kv_heads), make(self.heads)

    def token_pairs(self, layout: BlockLayout) -> int:
        """Query-key pairs in active blocks of one head; the diagonal blocks of a causal case count half."""
        if not self.causal:
            return layout.num_active_blocks * self.block**2
        _, rows, cols = layout.head_rows_cols()
        diagonal = int((rows + layout.grid.first_row == cols).sum())
        return (layout.num_active_blocks - diagonal) * self.block**2 + diagonal * self.block * (
            self.block + 1
        ) // 2

    def dense_pairs(self) -> int:
        return self.seqlen * (self.seqlen + 1) // 2 if self.causal else self.seqlen**2

    def flops(self, pairs: int) -> int:
        """Of the forward; the backward counts 2.5 times as many."""
        return 4 * self.batch * self.heads * pairs * self.head_dim

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


KERNELS = [
    Case(131072, 16, 128, 128, 0.05),
    Case(131072, 16, 128, 128, 0.01),
    Case(131072, 16, 128, 64, 0.05),
    Case(131072, 16, 128, 64, 0.01),
    Case(131072, 32, 64, 128, 0.05),
    Case(131072, 32, 64, 128, 0.01),
    Case(131072, 32, 64, 64, 0.05),
    Case(131072, 8, 64, 128, 0.01),
    Case(16384, 16, 128, 128, 0.05),
    Case(16384, 16, 128, 128, 0.01),
]
PRESETS = {
    "kernels": KERNELS,
    "cpu": [Case(16384, 4, 64, 64, 0.02, dtype="float32")],
    "quick": [Case(2048, 2, 64, 64, 0.1, dtype="float32")],
}
