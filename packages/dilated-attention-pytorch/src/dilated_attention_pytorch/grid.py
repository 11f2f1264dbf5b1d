"""The matrix of block pairs of one attention call: its rows, columns and diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import values
from .config import check_block_size


@dataclass(frozen=True)
class BlockGrid:
    """Block rows and columns for `q_len` queries at their positions and `kv_len` keys.

    Query i sits at position ``i + q_offset``; `q_offset` is ``kv_len - q_len`` when causal (the last query
    sees the last key), else 0. Row r of the grid holds the positions of block ``first_row + r``.
    """

    q_len: int
    kv_len: int
    block_size: int
    causal: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", check_block_size(self.block_size))
        for name in ("q_len", "kv_len"):
            given = getattr(self, name)
            tokens = values.tokens(given)
            if tokens is None:
                raise ValueError(
                    f"{name} must be a positive number of tokens below 2**31, got {values.shown(given)}"
                )
            object.__setattr__(self, name, tokens)
        causal = values.flag(self.causal)
        if causal is None:
            raise TypeError(f"causal must be True or False, got {values.shown(self.causal)}")
        object.__setattr__(self, "causal", causal)

    @property
    def q_offset(self) -> int:
        return self.kv_len - self.q_len if self.causal else 0

    @property
    def first_row(self) -> int:
        return self.q_offset // self.block_size

    @property
    def n_rows(self) -> int:
        return -(-(self.q_len + self.q_offset) // self.block_size) - self.first_row

    @property
    def n_cols(self) -> int:
        return -(-self.kv_len // self.block_size)

    @property
    def n_budget_rows(self) -> int:
        """Rows that the running total counts: all those of the square matrix when causal."""
        return self.n_cols if self.causal else self.n_rows

    def visible_rows(self, values: Tensor) -> Tensor:
        """The values of this grid's rows, of values of all budget rows; 0 for rows before the first key."""
        if not self.causal:
            return values
        if self.first_row >= 0:
            return values[self.first_row :]
        return torch.cat([values.new_zeros(-self.first_row), values])

    def diagonal(self, device: torch.device | None = None) -> Tensor:
        """Column of each row's diagonal block, int64 (n_rows,); negative before the first key."""
        rows = torch.arange(self.n_rows, device=device)
        return rows + self.first_row if self.causal else rows * self.n_cols // self.n_rows

    def available(self) -> int:
        """Block pairs that dense attention computes."""
        if not self.causal:
            return self.n_rows * self.n_cols
        first = max(self.first_row, 0)
        return self.n_cols * (self.n_cols + 1) // 2 - first * (first + 1) // 2
