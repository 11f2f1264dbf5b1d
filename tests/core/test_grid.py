"""The rows and columns of queries and keys at their positions."""

from __future__ import annotations

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.patterns.registry import active_pairs

CPU = torch.device("cpu")
CONFIGS = [
    SparsePatternConfig("dilated_sparse", block_size=16, sparsity_ratio=0.3),
    SparsePatternConfig("local_window", block_size=16, sparsity_ratio=0.2),
    SparsePatternConfig("local_window", block_size=16, window_size=40),
    SparsePatternConfig("global_local", block_size=16, sparsity_ratio=0.4, global_tokens=20),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.pattern_type}_{config.window_size}")
@pytest.mark.parametrize(("q_len", "q_offset"), [(300, 0), (1, 0), (33, 100), (64, 64), (1, 299), (200, 90)])
def test_causal_rows_at_any_position_are_those_of_the_whole_sequence(
    config: SparsePatternConfig, q_len: int, q_offset: int
) -> None:
    whole = BlockLayout.from_config(config, 300, causal=True).rows()
    grid = BlockGrid(q_len, 300, 16, True, q_offset)
    found: list[list[int]] = [[] for _ in range(grid.n_rows)]
    for row, column in zip(*(x.tolist() for x in active_pairs(config, grid, CPU)), strict=True):
        found[row].append(column)
    assert [sorted(row) for row in found] == whole[grid.first_row : grid.first_row + grid.n_rows]
    positions = {(q_offset + i) // 16 for i in range(q_len)}
    assert positions == set(range(grid.first_row, grid.first_row + grid.n_rows))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "q_offset"), [(300, 0), (1, 0), (33, 100), (64, 64), (1, 299)])
def test_available_blocks_are_those_that_a_query_may_see(q_len: int, q_offset: int, causal: bool) -> None:
    grid = BlockGrid(q_len, 300, 16, causal, q_offset)
    pairs = {
        ((q_offset + i) // 16, j // 16)
        for i in range(q_len)
        for j in range(300)
        if not causal or j <= q_offset + i
    }
    assert grid.available() == len(pairs)


def test_default_position_is_the_end_when_causal_else_the_start() -> None:
    assert BlockGrid(20, 100, 16, True) == BlockGrid(20, 100, 16, True, 80)
    assert BlockGrid(20, 100, 16, False) == BlockGrid(20, 100, 16, False, 0)
    assert BlockGrid(120, 100, 16, True).q_offset == -20
    assert BlockGrid(20, 100, 16, True, 30).with_lengths(30, 110).q_offset == 80


@pytest.mark.parametrize(
    ("q_len", "causal", "q_offset", "expected"),
    [
        (20, True, -1, "0 to 80, got -1"),
        (20, True, 81, "0 to 80, got 81"),
        (120, True, 0, "-20 to -20, got 0"),
        (20, False, -1, "0 to 2147483627, got -1"),
        (20, False, 1.5, "0 to 2147483627, got 1.5"),
    ],
)
def test_positions_out_of_range_are_refused(q_len: int, causal: bool, q_offset: int, expected: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        BlockGrid(q_len, 100, 16, causal, q_offset)
    assert str(error.value) == f"q_offset must be {expected}"
