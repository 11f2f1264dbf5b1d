"""Swaps of single blocks between ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch.distributed import swaps
from dilated_attention_pytorch.distributed.swaps import swapped
from tests.core import pattern_cases  # noqa: F401  the hypothesis profile


def loads(owners: Tensor, costs: Tensor) -> list[int]:
    return [int(costs[owners == rank].sum()) for rank in range(int(owners.max()) + 1)]


def test_the_dearest_rank_swaps_a_block_where_it_adds_no_chunk() -> None:
    owners, costs = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 1, 1, 5, 5, 5])
    assert swapped(owners, costs, 2, 11).tolist() == [1, 0, 0, 0, 1, 1]
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]


def test_nothing_is_swapped_if_no_rank_costs_too_much() -> None:
    owners, costs = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 5, 5])
    assert swapped(owners, costs, 2, 10).tolist() == owners.tolist()


def test_long_sequences_swap_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "MOST_PAIRS", 17)
    owners, costs = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 1, 1, 5, 5, 5])
    assert swapped(owners, costs, 2, 11) is owners


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=4, max_size=60), st.integers(0, 200)
)
def test_swaps_make_the_dearest_rank_cheaper(blocks: list[tuple[int, int]], most: int) -> None:
    owners, costs = torch.tensor(blocks).T.contiguous()
    owners[:4] = torch.arange(4)
    found = swapped(owners, costs, 4, most)
    assert torch.equal(found.bincount(minlength=4), owners.bincount(minlength=4))
    assert found[-1] == owners[-1]
    before, after = max(loads(owners, costs)), max(loads(found, costs))
    assert after <= before
    assert torch.equal(found, owners) or before > most
