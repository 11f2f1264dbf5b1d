"""Shares that end with a sequence: fewer sequences are split, and no rank gets too much."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.distributed.balance import Chunks, chunks_of
from dilated_attention_pytorch.distributed.whole_sequences import ending_with_sequences


def blocks_of(lengths: list[int], size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """The sequence, the tokens and the cost (a causal row) of every block."""
    sequence, tokens, costs = [], [], []
    for number, length in enumerate(lengths):
        for first in range(0, length, size):
            sequence.append(number)
            tokens.append(min(size, length - first))
            costs.append(first // size + 1)
    return torch.tensor(sequence), torch.tensor(tokens), torch.tensor(costs)


def loads(chunks: Chunks, of_blocks: Tensor) -> list[int]:
    return [sum(int(of_blocks[first:stop].sum()) for first, stop in mine) for mine in chunks]


def n_split(chunks: Chunks, sequence: Tensor) -> int:
    ends = [stop for mine in chunks for _, stop in mine if stop < sequence.numel()]
    return len({int(sequence[end]) for end in ends if sequence[end] == sequence[end - 1]})


@pytest.mark.parametrize("balance", ["contiguous", "zigzag", "cost"])
def test_short_sequences_are_not_split(balance: str) -> None:
    rng = random.Random(0)
    sequence, tokens, costs = blocks_of([rng.randint(1, 100) for _ in range(800)])
    before = chunks_of(balance, costs, 4)
    chunks = ending_with_sequences(before, sequence, tokens, costs)
    assert n_split(before, sequence) > 0
    assert n_split(chunks, sequence) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_rank_gets_too_much(seed: int) -> None:
    rng = random.Random(seed)
    world_size = rng.randint(2, 8)
    lengths = [rng.choice([rng.randint(1, 40), rng.randint(1, 400), 2000]) for _ in range(rng.randint(8, 60))]
    sequence, tokens, costs = blocks_of(lengths)
    before = chunks_of(rng.choice(["contiguous", "zigzag", "cost"]), costs, world_size)
    chunks = ending_with_sequences(before, sequence, tokens, costs)
    owned = [block for mine in chunks for first, stop in mine for block in range(first, stop)]
    assert sorted(owned) == list(range(sequence.numel()))
    assert chunks[-1][-1][1] == sequence.numel()
    assert n_split(chunks, sequence) <= n_split(before, sequence)
    for of_blocks in (tokens, costs):
        allowed = max(*loads(before, of_blocks), 1.03 * int(of_blocks.sum()) / world_size)
        assert max(loads(chunks, of_blocks)) <= allowed


def test_a_sequence_longer_than_a_share_stays_split() -> None:
    sequence, tokens, costs = blocks_of([3200, 16])
    before = chunks_of("contiguous", costs, 4)
    assert ending_with_sequences(before, sequence, tokens, costs) == before
