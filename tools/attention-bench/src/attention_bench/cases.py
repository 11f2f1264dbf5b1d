"""Case: the shapes, pattern and dtype of an attention call to be timed."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, select_blocks
from dilated_attention_pytorch.config import PATTERN_TYPES, TokenDilation, takes
from dilated_attention_pytorch.config_warnings import SparsityRatioWarning

from .counts import counted

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PATTERN_RATES = (1, 2, 4, 8)
RANDOM = "random_topk"  # as many random blocks in every row of every kv head, the diagonal among them
PATTERNS = (*PATTERN_TYPES, RANDOM)


@dataclass(frozen=True)
class Case:
    """An attention call.

    density: fraction of blocks kept.
    pattern_rates: `dilation_rates` of dilated_sparse, in blocks. None: the powers of two.
    segment_lengths, dilation_rates: token dilation of `block_sparse_attention`. None: no token dilation.
    decode: a single causal query at the end of `seqlen` keys.
    window: of local_window, in tokens, exact to the token; the density then counts for nothing. None: whole blocks.
    v_head_dim: None is head_dim.
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
    window: int | None = None
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads must divide heads {self.heads}, got {self.kv_heads}")
        if self.decode and not self.causal:
            raise ValueError(
                "decode needs causal=True, got causal=False; its query is the last of the sequence"
            )
        if self.window is not None and self.pattern != "local_window":
            raise ValueError(f"window needs pattern 'local_window', got {self.pattern!r}")
        if self.decode and self.pattern == RANDOM:
            raise ValueError(f"decode needs a pattern of {PATTERN_TYPES}, got {self.pattern!r}")
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
    def num_v_dims(self) -> int:
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def blocks_per_row(self) -> int:
        """The blocks that a row of `random_topk` keeps: the density of all of them, rounded down, at least one."""
        return max(1, int(Fraction(str(self.density)) * -(-self.seqlen // self.block)))

    @property
    def label(self) -> str:
        if self.window is not None:
            return f"{self._sizes()}, window {self.window:,}{self._features()}"
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
        v_dims = "" if self.num_v_dims == self.head_dim else f" (v {self.v_head_dim})"
        return f"{heads} x {self.head_dim}{v_dims}"

    def _sizes(self) -> str:
        batch = "" if self.batch == 1 else f"{self.batch} x "
        tokens = f"1 query, {counted(self.seqlen, 'key')}" if self.decode else counted(self.seqlen, "token")
        return f"{batch}{tokens}, {self._heads()}, block {self.block}"

    def _features(self) -> str:
        text = " causal" if self.causal and not self.decode else ""
        if self.pattern == RANDOM:
            text += ", random"
        elif self.pattern != "dilated_sparse":
            text += "" if self.window is not None else f", {self.pattern}"
        elif self.pattern_rates is None:
            text += ", rates 1 2 4 ..."
        elif self.pattern_rates != PATTERN_RATES:
            text += f", rates {' '.join(map(str, self.pattern_rates))}"
        if self.segment_lengths is not None and self.dilation_rates is not None:
            pairs = zip(self.segment_lengths, self.dilation_rates, strict=True)
            text += ", token dilation " + " ".join(f"{segment}:{rate}" for segment, rate in pairs)
        return text

    def config(self) -> SparsePatternConfig:
        """The pattern; one with global tokens has one block of them. ValueError for `random_topk`."""
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
                window_size=self.window,
                exact=self.window is not None,
            )

    def layout(self, device: str) -> BlockLayout:
        if self.pattern == RANDOM:
            return self._random_layout(device)
        return BlockLayout.from_config(
            self.config(), self.q_len, self.seqlen, causal=self.causal, device=device
        )

    def _random_layout(self, device: str) -> BlockLayout:
        n_blocks = -(-self.seqlen // self.block)
        generator = torch.Generator(device).manual_seed(2)
        scores = torch.rand(1, self.num_kv_heads, n_blocks, n_blocks, generator=generator, device=device)
        indices, counts = select_blocks(scores, self.blocks_per_row, causal=self.causal)
        return BlockLayout.from_indices(
            indices, counts, q_len=self.seqlen, kv_len=self.seqlen, block_size=self.block, causal=self.causal
        )

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (batch, tokens, heads, head_dim) each; the same values for every peer."""
        generator = torch.Generator(device).manual_seed(0)
        return (
            self._random(self.q_len, self.heads, self.head_dim, device, generator),
            self._random(self.seqlen, self.num_kv_heads, self.head_dim, device, generator),
            self._random(self.seqlen, self.num_kv_heads, self.num_v_dims, device, generator),
        )

    def grad_out(self, device: str) -> Tensor:
        """The gradient of the output."""
        generator = torch.Generator(device).manual_seed(1)
        return self._random(self.q_len, self.heads, self.num_v_dims, device, generator)

    def _random(
        self, tokens: int, heads: int, head_dim: int, device: str, generator: torch.Generator
    ) -> Tensor:
        shape = (self.batch, tokens, heads, head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[self.dtype])

    def token_pairs(self, layout: BlockLayout) -> int:
        """Query-key pairs in the active blocks of a head, the mean of the heads; in a causal case, diagonal blocks count only
        pairs up to the diagonal, and of an exact window only what it shows counts."""
        if self.decode:
            return sum(min(self.block, self.seqlen - block * self.block) for block in layout.rows()[0])
        if layout.block_masks is not None:
            return layout.stats().num_pairs // layout.num_heads
        if not self.causal:
            return layout.num_active_blocks * self.block**2 // layout.num_heads
        _, rows, cols = layout.coo()
        diagonal = int((rows + layout.grid.first_row == cols).sum())
        whole = (layout.num_active_blocks - diagonal) * self.block**2
        return (whole + diagonal * self.block * (self.block + 1) // 2) // layout.num_heads

    def dense_pairs(self) -> int:
        """Query-key pairs of dense attention per head."""
        if self.decode:
            return self.seqlen
        return self.seqlen * (self.seqlen + 1) // 2 if self.causal else self.seqlen**2

    def flops(self, pairs: int) -> int:
        """FLOPs of the forward; the backward counts as 2.5 times as many.

        Keys dropped by token dilation count too, so that the TFLOP/s with and without it compare like the times.
        """
        return 2 * self.batch * self.heads * pairs * (self.head_dim + self.num_v_dims)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
