"""Which columns the backward takes together with token dilation, beside a slow definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.hopper.column_groups import (
    MAX_STRIDE,
    candidate_strides,
    count_column_groups,
)
from dilated_attention_pytorch.config import TokenDilation
from tests.core.backends.hopper.cases import offsets_of, work_order

BLOCK = 128
Lists = list[
    list[list[dict[int, int]]]
]  # by head, group and distance class: the members that a row sees, as bits


@dataclass
class Groups:
    stride: int
    n_long: int
    order: list[list[int]]
    lists: Lists


def dilation_of(segments: Sequence[int], rates: Sequence[int]) -> TokenDilation:
    dilation = TokenDilation.from_user(segments, rates, BLOCK)
    assert dilation is not None
    return dilation


def found_in(layout: BlockLayout, dilation: TokenDilation) -> Groups:
    """The columns' part of a work order, taken apart."""
    grid, heads = layout.grid, layout.num_heads
    n_classes = len(dilation.dilation_rates)
    n_groups = count_column_groups(grid.n_cols, max(dilation.dilation_rates))
    made, offsets = work_order(layout, dilation), offsets_of(layout, dilation)
    assert made.dtype == torch.int32
    n = heads * n_groups
    stride, n_long, order, starts, pairs = made[offsets.columns_at :].split(
        [1, 1, n, n * n_classes + 1, 2 * layout.num_active_blocks]
    )
    bounds = starts.tolist()
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    lists = []
    for lo, hi in itertools.pairwise(bounds):
        rows = pairs.view(-1, 2)[lo:hi].tolist()
        assert [row for row, _ in rows] == sorted({row for row, _ in rows})
        lists.append(dict(rows))
    by_group = [lists[i : i + n_classes] for i in range(0, len(lists), n_classes)]
    by_head = [by_group[i : i + n_groups] for i in range(0, n, n_groups)]
    return Groups(int(stride), int(n_long), order.view(heads, n_groups).tolist(), by_head)


def slow_lists(layout: BlockLayout, dilation: TokenDilation, stride: int) -> Lists:
    """The lists for columns that stand so far apart, from the active pairs one by one."""
    grid, rates = layout.grid, dilation.dilation_rates
    group_size = max(rates)
    n_groups = count_column_groups(grid.n_cols, group_size)
    lists: Lists = [[[{} for _ in rates] for _ in range(n_groups)] for _ in range(layout.num_heads)]
    for head in range(layout.num_heads):
        for row, columns in enumerate(layout.rows(head)):
            for column in columns:
                distance = abs(grid.first_row + row - column) * BLOCK
                in_class = next(
                    (i for i, segment in enumerate(dilation.segment_lengths) if segment > distance),
                    len(rates) - 1,
                )
                group, member = (
                    column // (stride * group_size) * stride + column % stride,
                    column // stride % group_size,
                )
                seen = lists[head][group][in_class]
                seen[row] = seen.get(row, 0) | 1 << member
    return lists


def cost(lists: Lists, dilation: TokenDilation) -> int:
    """Steps of a backward: a list is gone through by the tiles of every residue whose keys are kept."""
    group_size = max(dilation.dilation_rates)
    return sum(
        len(rows) * group_size // rate
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
    group_size = max(dilation.dilation_rates)
    costs = {
        stride: cost(slow_lists(layout, dilation, stride), dilation)
        for stride in candidate_strides(layout.grid.n_cols, group_size)
    }
    assert found.stride == min(costs, key=lambda stride: (costs[stride], stride))
    assert found.lists == slow_lists(layout, dilation, found.stride)
    for order, groups in zip(found.order, found.lists, strict=True):
        assert sorted(order) == list(range(len(groups)))
        lengths = [max(1, sum(map(len, groups[i]))) for i in order]
        for before, after in itertools.pairwise(lengths):
            assert before * 2**0.25 > after


def test_columns_that_the_same_rows_see_are_joined() -> None:
    layout = built(150 * BLOCK, 0.05, rates=[16, 32])
    dilation = DILATIONS["near_all_far_fourth"]
    found = found_in(layout, dilation)
    assert found.stride == 16
    # next to each other they have no row together
    far, far_of_neighbours = (
        sum(len(group[1]) for groups in lists for group in groups)
        for lists in (found.lists, slow_lists(layout, dilation, 1))
    )
    assert far < far_of_neighbours / 2


@pytest.mark.parametrize("group_size", [2, 4, 8, 16])
@pytest.mark.parametrize("n_cols", [1, 2, 7, 16, 100, 1024])
def test_groups_hold_every_column_once_whatever_the_distance(n_cols: int, group_size: int) -> None:
    n_groups = count_column_groups(n_cols, group_size)
    tried = candidate_strides(n_cols, group_size)
    assert tried[0] == 1
    assert max(tried) <= MAX_STRIDE
    assert n_groups < n_cols / group_size + max(tried) + 1
    for stride in tried:
        places = {
            (c // (stride * group_size) * stride + c % stride, c // stride % group_size)
            for c in range(n_cols)
        }
        assert len(places) == n_cols
        assert max(group for group, _ in places) < n_groups


def test_made_without_looking_at_the_values() -> None:
    made = work_order(built(20 * BLOCK, 0.3).to("meta"), DILATIONS["near_all_far_fourth"])
    assert made.device.type == "meta"
