"""Budgets of rows on a device beside those of patterns."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.budgets import Share, row_budgets
from dilated_attention_pytorch.patterns.budget import ratio_budget

CPU = torch.device("cpu")
RATIOS = ["0.1", "0.29", "1", "1/3", "0.0123456789", "0.5"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(640, 640), (100, 1000), (1, 500), (1000, 300), (16, 16)])
@pytest.mark.parametrize("ratio", RATIOS)
def test_budgets_are_those_of_patterns(causal: bool, lengths: tuple[int, int], ratio: str) -> None:
    grid = BlockGrid(*lengths, 16, causal)
    config = SparsePatternConfig(block_size=16, sparsity_ratio=Fraction(ratio))
    share = Share.of(Fraction(ratio), config.least_blocks(causal))
    wanted = grid.visible_rows(ratio_budget(config, grid).blocks())
    found = row_budgets(share, grid, None, CPU)
    assert found.dtype == torch.int32
    assert found.tolist() == wanted.tolist()
    assert found.max() <= share.most(grid.n_cols)


def test_batch_elements_of_other_lengths_have_the_budgets_that_they_have_alone() -> None:
    share, lengths = Share.of(Fraction(1, 10), 2), torch.tensor([640, 1, 333, 0])
    found = row_budgets(share, BlockGrid(640, 640, 16, causal=False), lengths, CPU)
    assert found.shape == (4, 1, 40)
    for element, length in enumerate(lengths.tolist()[:3]):
        alone = row_budgets(share, BlockGrid(length, length, 16, causal=False), None, CPU)
        assert found[element, 0, : len(alone)].tolist() == alone.tolist()
    assert not found[3].any()


def test_causal_rows_depend_on_no_length() -> None:
    share = Share.of(Fraction(1, 10), 3)
    grid = BlockGrid(640, 640, 16, causal=True)
    found = row_budgets(share, grid, torch.tensor([640, 20]), CPU)
    assert torch.equal(found, row_budgets(share, grid, None, CPU))
    shorter = row_budgets(share, BlockGrid(320, 320, 16, causal=True), None, CPU)
    assert torch.equal(found[:20], shorter)
