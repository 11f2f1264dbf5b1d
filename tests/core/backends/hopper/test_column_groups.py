"""Which columns the backward takes together with token dilation, beside a slow definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.patterns.joined import FARTHEST, MOST_JOINED, count_joined_groups, distances
from dilated_attention_pytorch.patterns.schedule import start_of_columns

BLOCK = 128
Lists = list[
    list[list[dict[int, int]]]
]  # by head, group and distance class: the members that a row sees, as bits


@dataclass
class Joined:
    apart: int
    n_long: int
    order: list[list[int]]
    lists: Lists


def dilation_of(segments: Sequence[int], rates: Sequence[int]) -> TokenDilation:
    dilation = TokenDilation.from_user(segments, rates, BLOCK)
    assert dilation is not None
    return dilation


def found_in(layout: BlockLayout, dilation: TokenDilation) -> Joined:
    """The columns' part of a schedule, taken apart."""
    grid, heads = layout.grid, layout.num_heads
    n_classes = len(dilation.dilation_rates)
    n_groups = count_joined_groups(grid.n_cols, max(dilation.dilation_rates))
    start = start_of_columns(heads, grid.n_rows, layout.num_active_blocks, BLOCK)
    schedule = layout.schedule(dilation)
    assert schedule.dtype == torch.int32
    n = heads * n_groups
    apart, n_long, order, offsets, pairs = schedule[start:].split(
        [1, 1, n, n * n_classes + 1, 2 * layout.num_active_blocks]
    )
    bounds = offsets.tolist()
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    lists = []
    for lo, hi in itertools.pairwise(bounds):
        rows = pairs.view(-1, 2)[lo:hi].tolist()
        assert [row for row, _ in rows] == sorted({row for row, _ in rows})
        lists.append(dict(rows))
    by_group = [lists[i : i + n_classes] for i in range(0, len(lists), n_classes)]
    by_head = [by_group[i : i + n_groups] for i in range(0, n, n_groups)]
    return Joined(int(apart), int(n_long), order.view(heads, n_groups).tolist(), by_head)


def slow_lists(layout: BlockLayout, dilation: TokenDilation, apart: int) -> Lists:
    """The lists for columns that stand so far apart, from the active pairs one by one."""
    grid, rates = layout.grid, dilation.dilation_rates
    joined = max(rates)
    n_groups = count_joined_groups(grid.n_cols, joined)
    lists: Lists = [[[{} for _ in rates] for _ in range(n_groups)] for _ in range(layout.num_heads)]
    for head in range(layout.num_heads):
        for row, columns in enumerate(layout.rows(head)):
            for column in columns:
                distance = abs(grid.first_row + row - column) * BLOCK
                in_class = next(
                    (i for i, segment in enumerate(dilation.segment_lengths) if segment > distance),
                    len(rates) - 1,
                )
                group, member = column // (apart * joined) * apart + column % apart, column // apart % joined
                seen = lists[head][group][in_class]
                seen[row] = seen.get(row, 0) | 1 << member
    return lists


def cost(lists: Lists, dilation: TokenDilation) -> int:
    """Steps of a backward: a list is gone through by the tiles of every residue whose keys are kept."""
    joined = max(dilation.dilation_rates)
    return sum(
        len(rows) * joined // rate
        for groups in lists
        for group in groups
        for rows, rate in zip(group, dilation.dilation_rates, strict=True)
    )


def built(
    tokens: int, *ratios: float, causal: bool = False, rates: Sequence[int] | None = None
) -> BlockLayout:
    configs = [
        SparsePatternConfig(block_size=BLOCK, sparsity_ratio=ratio, dilation_rates=rates) for ratio in ratios
    ]
    return BlockLayout.from_config(configs, tokens, causal=causal)


LAYOUTS = {
    "one_block": lambda: built(100, 1.0),
    "dilated": lambda: built(40 * BLOCK, 0.2),
    "every_fourth": lambda: built(64 * BLOCK, 0.1, rates=[4, 8]),
    "every_sixteenth": lambda: built(150 * BLOCK, 0.05, rates=[16, 32]),
    "causal": lambda: built(37 * BLOCK - 4, 0.4, causal=True),
    "per_head": lambda: built(33 * BLOCK, 0.3, 0.1, 0.6),
    "random": lambda: BlockLayout.from_dense(torch.rand(2, 19, 41) < 0.2, BLOCK),
    "nothing": lambda: BlockLayout.from_dense(torch.zeros(2, 5, 7, dtype=torch.bool), BLOCK),
    "chunk": lambda: BlockLayout.from_config(
        SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.5), 5 * BLOCK, 30 * BLOCK, causal=True
    ),
}
DILATIONS = {
    "near_all_far_fourth": dilation_of([512, 1024], [1, 4]),
    "near_fewer": dilation_of([512, 1024], [8, 2]),
    "one_class": dilation_of([128], [16]),
}


@pytest.mark.parametrize("dilation", DILATIONS.values(), ids=DILATIONS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_lists_are_those_of_the_slow_definition_at_the_best_distance(
    name: str, dilation: TokenDilation
) -> None:
    layout = LAYOUTS[name]()
    found = found_in(layout, dilation)
    joined = max(dilation.dilation_rates)
    costs = {
        apart: cost(slow_lists(layout, dilation, apart), dilation)
        for apart in distances(layout.grid.n_cols, joined)
    }
    assert found.apart == min(costs, key=lambda apart: (costs[apart], apart))
    assert found.lists == slow_lists(layout, dilation, found.apart)
    for order, groups in zip(found.order, found.lists, strict=True):
        assert sorted(order) == list(range(len(groups)))
        lengths = [max(1, sum(map(len, groups[i]))) for i in order]
        for before, after in itertools.pairwise(lengths):
            assert before * 2**0.25 > after


def test_columns_that_the_same_rows_see_are_joined() -> None:
    layout = built(150 * BLOCK, 0.05, rates=[16, 32])
    dilation = DILATIONS["near_all_far_fourth"]
    found = found_in(layout, dilation)
    assert found.apart == 16
    # next to each other they have no row together
    far, far_of_neighbours = (
        sum(len(group[1]) for groups in lists for group in groups)
        for lists in (found.lists, slow_lists(layout, dilation, 1))
    )
    assert far < far_of_neighbours / 2


@pytest.mark.parametrize("joined", [2, 4, 8, 16])
@pytest.mark.parametrize("n_cols", [1, 2, 7, 16, 100, 1024])
def test_groups_hold_every_column_once_whatever_the_distance(n_cols: int, joined: int) -> None:
    n_groups = count_joined_groups(n_cols, joined)
    tried = distances(n_cols, joined)
    assert tried[0] == 1
    assert max(tried) <= FARTHEST
    assert n_groups < n_cols / joined + max(tried) + 1
    for apart in tried:
        places = {(c // (apart * joined) * apart + c % apart, c // apart % joined) for c in range(n_cols)}
        assert len(places) == n_cols
        assert max(group for group, _ in places) < n_groups


def test_rates_that_no_kernel_takes_have_no_columns() -> None:
    layout = built(20 * BLOCK, 0.3)
    schedule = layout.schedule(dilation_of([256], [2 * MOST_JOINED]))
    assert len(schedule) == 1 + 2 * 20


def test_made_without_looking_at_the_values() -> None:
    schedule = built(20 * BLOCK, 0.3).to("meta").schedule(DILATIONS["near_all_far_fourth"])
    assert schedule.device.type == "meta"


def test_columns_are_joined_for_as_many_classes_as_kernels_take() -> None:
    layout = built(16 * BLOCK, 0.4)
    rows_alone = start_of_columns(1, 16, layout.num_active_blocks, BLOCK)
    assert layout.schedule(dilation_of([256, 512], [1, 2])).numel() > rows_alone
    assert layout.schedule(dilation_of([256, 512, 1024], [1, 2, 4])).numel() <= rows_alone
