"""BlockGrid: the block rows and columns of queries and keys at their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import values
from .config import check_block_size


@dataclass(frozen=True)
class BlockGrid:
    """Block rows for `q_len` queries and block columns for `kv_len` keys.

    Key j is at position j, query i at position ``i + q_offset``. Row r of the grid holds the positions of block
    ``first_row + r``, column c those of block c.

    Attributes:
        q_len: number of queries.
        kv_len: number of keys.
        block_size: positions per block.
        causal: whether queries see no later keys.
        q_offset: position of the first query. Default: ``kv_len - q_len`` if causal (the last query is at the position
            of the last key), otherwise 0. Must be at least 0, and if causal at most ``kv_len - q_len``.

    Raises:
        ValueError: a number is out of range.
        TypeError: a number is not an int, or `causal` is not a bool.
    """

    q_len: int
    kv_len: int
    block_size: int
    causal: bool
    q_offset: int = None  # type: ignore[assignment]  # __post_init__ replaces None

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():  # a tracer has symbols for lengths
            if self.q_offset is None:
                object.__setattr__(self, "q_offset", self.kv_len - self.q_len if self.causal else 0)
            return
        object.__setattr__(self, "block_size", check_block_size(self.block_size))
        for name in ("q_len", "kv_len"):
            given = getattr(self, name)
            tokens = values.tokens(given)
            if tokens is None:
                raise values.wrong(
                    values.integer(given),
                    f"{name} must be a positive number of tokens below 2**31, got {values.shown(given)}",
                )
            object.__setattr__(self, name, tokens)
        causal = values.flag(self.causal)
        if causal is None:
            raise TypeError(f"causal must be True or False, got {values.shown(self.causal)}")
        object.__setattr__(self, "causal", causal)
        object.__setattr__(self, "q_offset", self._checked_offset(self.q_offset))

    def _checked_offset(self, given: Any) -> int:
        default = self.kv_len - self.q_len if self.causal else 0
        if given is None:
            return default
        least, most = min(0, default), default if self.causal else values.MAX_TOKENS - self.q_len
        offset = values.integer(given)
        if offset is None or not least <= offset <= most:
            raise values.wrong(offset, f"q_offset must be {least} to {most}, got {values.shown(given)}")
        return offset

    def with_lengths(self, q_len: int, kv_len: int) -> BlockGrid:
        """The grid of other lengths, with the default `q_offset`."""
        return BlockGrid(q_len, kv_len, self.block_size, self.causal)

    @property
    def is_square(self) -> bool:
        """Whether queries and keys are at the same positions."""
        return self.q_len == self.kv_len and self.q_offset == 0

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
        """Rows of the running total; if causal, those of the whole square matrix, whatever `q_len` is."""
        return self.n_cols if self.causal else self.n_rows

    def visible_rows(self, values: Tensor) -> Tensor:
        """Select this grid's rows from one value per budget row; 0 for rows before the first key."""
        if not self.causal:
            return values
        if self.first_row >= 0:
            return values[self.first_row : self.first_row + self.n_rows]
        return torch.cat([values.new_zeros(-self.first_row), values])

    def diagonal(self, device: torch.device | None = None) -> Tensor:
        """Column of each row's diagonal block, int64 (n_rows,); negative for rows before the first key."""
        rows = torch.arange(self.n_rows, device=device)
        return rows + self.first_row if self.causal else rows * self.n_cols // self.n_rows

    def available(self) -> int:
        """Block pairs that dense attention computes."""
        if not self.causal:
            return self.n_rows * self.n_cols
        first, stop = max(self.first_row, 0), self.first_row + self.n_rows
        return stop * (stop + 1) // 2 - first * (first + 1) // 2

    def available_pairs(self) -> int:
        """Pairs of a query and a key that dense attention computes."""
        if not self.causal:
            return self.q_len * self.kv_len
        first, stop = max(self.q_offset, 0), self.q_offset + self.q_len
        return stop * (stop + 1) // 2 - first * (first + 1) // 2
