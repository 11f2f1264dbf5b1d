"""Case: the shapes, pattern and dtype of an attention call to be timed."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import TokenDilation, takes
from dilated_attention_pytorch.config_warnings import SparsityRatioWarning

from .counts import counted

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PATTERN_RATES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Case:
    """An attention call.

    density: fraction of blocks kept.
    pattern_rates: `dilation_rates` of dilated_sparse, in blocks. None: the powers of two.
    segment_lengths, dilation_rates: token dilation of `block_sparse_attention`. None: no token dilation.
    decode: a single causal query at the end of `seqlen` keys.
    """

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
    segment_lengths: tuple[int, ...] | None = None
    dilation_rates: tuple[int, ...] | None = None
    pattern_rates: tuple[int, ...] | None = PATTERN_RATES
    decode: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads must divide heads {self.heads}, got {self.kv_heads}")
        if self.decode and not self.causal:
            raise ValueError(
                "decode needs causal=True, got causal=False; its query is the last of the sequence"
            )
        for name in ("segment_lengths", "dilation_rates", "pattern_rates"):
            if isinstance(getattr(self, name), list):  # as read from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        TokenDilation.from_user(self.segment_lengths, self.dilation_rates, self.block)

    @property
    def num_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def q_len(self) -> int:
        return 1 if self.decode else self.seqlen

    @property
    def label(self) -> str:
        density = f"{self.density:.2%}" if self.density >= 1e-4 else f"{self.density * 100:.2g}%"
        return f"{self._sizes()}, {density}{self._features()}"

    @property
    def label_without_density(self) -> str:
        return self._sizes() + self._features()

    @property
    def label_of_heads(self) -> str:
        """Without the lengths and the density."""
        return f"{self._heads()}, block {self.block}{self._features()}"

    def _heads(self) -> str:
        heads = f"{self.heads}" if self.num_kv_heads == self.heads else f"{self.heads}:{self.num_kv_heads}"
        return f"{heads} x {self.head_dim}"

    def _sizes(self) -> str:
        batch = "" if self.batch == 1 else f"{self.batch} x "
        tokens = f"1 query, {counted(self.seqlen, 'key')}" if self.decode else counted(self.seqlen, "token")
        return f"{batch}{tokens}, {self._heads()}, block {self.block}"

    def _features(self) -> str:
        text = " causal" if self.causal and not self.decode else ""
        if self.pattern != "dilated_sparse":
            text += f", {self.pattern}"
        elif self.pattern_rates is None:
            text += ", rates 1 2 4 ..."
        elif self.pattern_rates != PATTERN_RATES:
            text += f", rates {' '.join(map(str, self.pattern_rates))}"
        if self.segment_lengths is not None and self.dilation_rates is not None:
            pairs = zip(self.segment_lengths, self.dilation_rates, strict=True)
            text += ", token dilation " + " ".join(f"{segment}:{rate}" for segment, rate in pairs)
        return text

    def config(self) -> SparsePatternConfig:
        """The pattern; one with global tokens has one block of them."""
        rates = self.pattern_rates if takes(self.pattern, "dilation_rates") else None
        global_tokens = self.block if takes(self.pattern, "global_tokens") else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityRatioWarning)  # a density is the fraction kept
            return SparsePatternConfig(
                self.pattern,  # type: ignore[arg-type]
                block_size=self.block,
                sparsity_ratio=self.density,
                dilation_rates=rates,
                global_tokens=global_tokens,
            )

    def layout(self, device: str) -> BlockLayout:
        return BlockLayout.from_config(
            self.config(), self.q_len, self.seqlen, causal=self.causal, device=device
        )

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (batch, tokens, heads, head_dim) each; the same values for every peer."""
        generator = torch.Generator(device).manual_seed(0)
        return (
            self._random(self.q_len, self.heads, device, generator),
            self._random(self.seqlen, self.num_kv_heads, device, generator),
            self._random(self.seqlen, self.num_kv_heads, device, generator),
        )

    def grad_out(self, device: str) -> Tensor:
        """The gradient of the output."""
        return self._random(self.q_len, self.heads, device, torch.Generator(device).manual_seed(1))

    def _random(self, tokens: int, heads: int, device: str, generator: torch.Generator) -> Tensor:
        shape = (self.batch, tokens, heads, self.head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[self.dtype])

    def token_pairs(self, layout: BlockLayout) -> int:
        """Query-key pairs in the active blocks of a head; in a causal case, diagonal blocks count only pairs up to the diagonal."""
        if self.decode:
            return sum(min(self.block, self.seqlen - block * self.block) for block in layout.rows()[0])
        if not self.causal:
            return layout.num_active_blocks * self.block**2
        _, rows, cols = layout.coo()
        diagonal = int((rows + layout.grid.first_row == cols).sum())
        return (layout.num_active_blocks - diagonal) * self.block**2 + diagonal * self.block * (
            self.block + 1
        ) // 2

    def dense_pairs(self) -> int:
        """Query-key pairs of dense attention per head."""
        if self.decode:
            return self.seqlen
        return self.seqlen * (self.seqlen + 1) // 2 if self.causal else self.seqlen**2

    def flops(self, pairs: int) -> int:
        """FLOPs of the forward; the backward counts as 2.5 times as many.

        Keys dropped by token dilation count too, so that the TFLOP/s with and without it compare like the times.
        """
        return 4 * self.batch * self.heads * pairs * self.head_dim

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
