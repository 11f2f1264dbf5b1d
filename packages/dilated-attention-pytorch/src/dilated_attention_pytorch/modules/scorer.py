"""BlockScorer: which blocks of keys a block of queries wants to see, learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from ..layout.pooled import without_autocast


class BlockScorer(nn.Module):
    """Features of blocks of queries and of keys, whose products are the scores of the pairs.

    Features are a linear map plus `num_layers` layers with a ReLU between them, of queries and of keys apart. It begins as the
    product itself: the map keeps the products (for hidden_dim >= head_dim), and the last of the layers is zero. A score takes
    hidden_dim operations, where a network of pairs takes hidden_dim ** 2.

    Args:
        num_heads: heads of the queries.
        head_dim: of queries and keys.
        hidden_dim: features of a block.
        num_layers: linear layers; 1 is the linear map alone.
        share_across_heads: the same weights for all heads.
        device: of the weights.
        dtype: of the weights. Features are float32, or float64 of float64 inputs.
    """

    q_map: Tensor
    k_map: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        hidden_dim: int = 128,
        num_layers: int = 2,
        share_across_heads: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.hidden_dim, self.num_layers, self.share_across_heads = hidden_dim, num_layers, share_across_heads
        for name, shape in self._shapes():
            self.register_parameter(name, self._empty(shape, device, dtype))
        self.reset_parameters()

    def _empty(self, shape: tuple[int, ...], device: Any, dtype: Any) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and shapes of all weights."""
        heads = 1 if self.share_across_heads else self.num_heads
        for side in ("q", "k"):
            yield f"{side}_map", (heads, self.head_dim, self.hidden_dim)
            if self.num_layers == 1:
                continue
            for layer in range(self.num_layers):
                n_inputs = self.head_dim if layer == 0 else self.hidden_dim
                yield f"{side}_weight_{layer}", (heads, n_inputs, self.hidden_dim)
                yield f"{side}_bias_{layer}", (heads, 1, self.hidden_dim)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights as of `torch.nn.Linear`, but that the last layers are zero and the maps keep products."""
        for name, _ in self._shapes():
            weight = getattr(self, name)
            if name.endswith("_map"):
                continue
            if name.endswith(f"_{self.num_layers - 1}"):
                nn.init.zeros_(weight)
            else:  # of a bias too, as there
                bound = 1 / math.sqrt(self.head_dim if name.endswith("_0") else self.hidden_dim)
                nn.init.uniform_(weight, -bound, bound)
        for head in range(self.q_map.shape[0]):
            if self.hidden_dim >= self.head_dim:
                nn.init.eye_(self.q_map[head])
            else:  # in float32, which has such matrices everywhere
                self.q_map[head] = nn.init.orthogonal_(self.q_map[head].float())
        self.k_map.copy_(self.q_map)

    def forward(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, num_heads, n_rows, hidden_dim) and (batch, num_heads, hidden_dim, n_cols).

        Args:
            queries: (batch, n_rows, num_heads, head_dim), float32 or float64.
            keys: (batch, n_cols, num_kv_heads, head_dim).
        """
        with without_autocast(queries):
            keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], 2)
            of_queries, of_keys = self._features("q", queries), self._features("k", keys)
        return of_queries, of_keys.transpose(2, 3)

    def _features(self, side: str, blocks: Tensor) -> Tensor:
        """(batch, num_heads, n_blocks, hidden_dim) of blocks (batch, n_blocks, num_heads, head_dim)."""
        blocks = blocks.transpose(1, 2)

        def weight(name: str) -> Tensor:
            found: Tensor = getattr(self, f"{side}_{name}")
            return found.to(blocks.dtype)

        features = blocks @ weight("map")
        if self.num_layers == 1:
            return features
        hidden = blocks
        for layer in range(self.num_layers):
            hidden = (F.relu(hidden) if layer else hidden) @ weight(f"weight_{layer}") + weight(
                f"bias_{layer}"
            )
        return features + hidden

    def extra_repr(self) -> str:
        shared = ", share_across_heads=True" if self.share_across_heads else ""
        return f"{self.num_heads}, {self.head_dim}, hidden_dim={self.hidden_dim}, num_layers={self.num_layers}{shared}"


class LazyBlockScorer(LazyModuleMixin, BlockScorer):
    """A `BlockScorer` that takes num_heads and head_dim from its first call, on the device of that, and is one from then on."""

    cls_to_become = BlockScorer

    def __init__(
        self,
        hidden_dim: int = 128,
        num_layers: int = 2,
        share_across_heads: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(0, 0, hidden_dim, num_layers, share_across_heads, device, dtype)

    def _empty(self, shape: tuple[int, ...], device: Any, dtype: Any) -> nn.Parameter:
        return UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg, return-value]

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.head_dim:
            super().reset_parameters()

    def initialize_parameters(self, queries: Tensor, keys: Tensor) -> None:
        """Make the weights for these blocks."""
        if not self.has_uninitialized_params():
            return
        self.num_heads, self.head_dim = queries.shape[2], queries.shape[3]
        with torch.no_grad():
            for name, shape in self._shapes():
                getattr(self, name).materialize(shape, device=queries.device)
            self.reset_parameters()
