"""Indices of active blocks for the tests, and their lists by plain Python loops."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists

Listed = list[list[tuple[int, int]]]  # the (index, block id) of every list

BLOCK = 16


class IndexCase(NamedTuple):
    """Random indices, some of them negative, doubled or out of range."""

    batch: int = 1
    heads: int = 1
    q_len: int = 100
    kv_len: int = 100
    causal: bool = False
    n_slots: int = 5
    dtype: torch.dtype = torch.int64
    has_counts: bool = True

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(self.q_len, self.kv_len, BLOCK, self.causal)

    def arguments(self, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """indices (batch, heads, n_rows, n_slots) and counts (batch, heads, n_rows)."""
        generator = torch.Generator().manual_seed(seed)
        rows = (self.batch, self.heads, self.grid.n_rows)

        def drawn(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator, dtype=self.dtype)

        indices = drawn(-2, self.grid.n_cols + 2, *rows, self.n_slots)
        return indices, drawn(-1, self.n_slots + 3, *rows) if self.has_counts else None


CASES = {
    "plain": IndexCase(has_counts=False),
    "one_block": IndexCase(q_len=1, kv_len=1, n_slots=1),
    "batch_and_heads": IndexCase(batch=2, heads=3, dtype=torch.int32),
    "causal": IndexCase(heads=2, q_len=600, kv_len=600, causal=True, n_slots=7),
    "causal_chunk": IndexCase(q_len=40, kv_len=700, causal=True, n_slots=20, dtype=torch.int32),
    "causal_more_queries": IndexCase(q_len=300, kv_len=100, causal=True, has_counts=False),
    "cross": IndexCase(batch=2, q_len=90, kv_len=1300, n_slots=9, dtype=torch.int32, has_counts=False),
    "many_rows": IndexCase(q_len=66 * 16, kv_len=33 * 16, n_slots=4),
    "more_slots_than_columns": IndexCase(q_len=50, kv_len=60, n_slots=300),
    "no_slots": IndexCase(n_slots=0, heads=2),
}


def slow_rows(indices: Tensor, counts: Tensor | None, grid: BlockGrid) -> Listed:
    """The (column, block id) of every row of all heads, in order."""
    n_slots = indices.shape[-1]
    listed: Listed = []
    for i, slots in enumerate(indices.reshape(-1, n_slots).tolist() if n_slots else [[]] * grid.n_rows * 2):
        end = n_slots if counts is None else counts.flatten()[i].item()
        last = i % grid.n_rows + grid.first_row if grid.causal else grid.n_cols - 1
        found: dict[int, int] = {}
        for slot, col in enumerate(slots):
            if slot < end and 0 <= col <= min(last, grid.n_cols - 1) and col not in found:
                found[col] = i * n_slots + slot
        listed.append(sorted(found.items()))
    return listed


def transposed(rows: Listed, grid: BlockGrid) -> Listed:
    """The (row, block id) of every column of all heads, in order."""
    n_heads = len(rows) // grid.n_rows
    cols: Listed = [[] for _ in range(n_heads * grid.n_cols)]
    for i, row in enumerate(rows):
        for col, block_id in row:
            cols[i // grid.n_rows * grid.n_cols + col].append((i % grid.n_rows, block_id))
    return cols


def listed(lists: BlockLists) -> Listed:
    """What the lists hold; nothing of what is behind them."""
    bounds = lists.indptr.tolist()
    pairs = list(zip(lists.indices.tolist(), lists.block_ids.tolist(), strict=True))
    return [pairs[begin:end] for begin, end in itertools.pairwise(bounds)]
