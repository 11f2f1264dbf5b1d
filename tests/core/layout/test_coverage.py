"""How far the patterns reach through stacked layers, and what a layout says about it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, UnusedFieldWarning
from dilated_attention_pytorch.patterns.registry import warn_about_isolated_rows

LENGTHS = [256, 320, 1000, 2048, 4096, 5000, 8192, 16384, 32768, 65536]
RATES: list[Any] = [None, [1, 2, 4, 8]]


def made(tokens: int, causal: bool, ratio: float = 0.01, **fields: Any) -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=ratio, **fields), tokens, causal=causal)


def distances(layout: BlockLayout) -> dict[int, float]:
    """Share of the rows that see a block at each distance."""
    seen: dict[int, int] = {}
    for row, columns in enumerate(layout.rows()):
        for distance in {abs(column - row) for column in columns}:
            seen[distance] = seen.get(distance, 0) + 1
    return {distance: count / layout.grid.n_rows for distance, count in seen.items()}


def test_what_the_codemod_writes_has_all_its_scales_at_16384_tokens() -> None:
    layout = made(16384, causal=False, dilation_rates=[1, 2, 4, 8])
    assert layout.num_active_blocks == 655
    found = distances(layout)
    assert all(found[distance] >= 0.2 for distance in (1, 2, 4, 8))
    assert layout.hops_to_full_coverage() == 110


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_causal_sequence_is_connected_at_every_length(tokens: int, rates: Any) -> None:
    layout = made(tokens, causal=True, dilation_rates=rates)
    rows = layout.rows()
    assert all(len(row) >= min(3, i + 1) for i, row in enumerate(rows))
    assert layout.hops_to_full_coverage() is not None


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("rates", [*RATES, [3], [5, 2], [7, 7, 19], [16, 32], [1000]], ids=str)
def test_sequence_that_is_not_causal_is_connected_at_every_length(tokens: int, rates: Any) -> None:
    assert made(tokens, causal=False, dilation_rates=rates).hops_to_full_coverage() is not None


@pytest.mark.parametrize("n", range(1, 40))
def test_two_blocks_a_row_are_one_cycle_through_all(n: int) -> None:
    layout = made(64 * n, causal=False, ratio=1e-6)
    following = [next((c for c in row if c != i), i) for i, row in enumerate(layout.rows())]
    visited, block = [], 0
    for _ in range(n):
        visited.append(block)
        block = following[block]
    assert sorted(visited) == list(range(n))


@pytest.mark.parametrize("tokens", [2048, 4096, 8192, 16384, 65536])
@pytest.mark.parametrize("causal", [False, True])
def test_every_scale_is_in_some_rows_at_every_length(tokens: int, causal: bool) -> None:
    found = distances(made(tokens, causal, dilation_rates=[1, 2, 4, 8]))
    assert all(found.get(distance, 0) >= 0.02 for distance in (1, 2, 4, 8))


def test_three_blocks_a_row_cover_a_causal_sequence_in_two_layers_per_doubling() -> None:
    """Every number of blocks up to 2,048 at once: causal rows do not depend on the length."""
    n = 2048
    dense = made(64 * n, causal=True, ratio=1e-9).to_dense()
    assert dense.sum(1).max() == 3
    links, wanted = dense.float(), torch.arange(1, n + 1)
    layers_of_row, seen = torch.zeros(n, dtype=torch.int64), dense
    for layers in itertools.count(1):
        layers_of_row[(seen.sum(1) == wanted) & (layers_of_row == 0)] = layers
        if bool((layers_of_row > 0).all()):
            break
        seen = links @ seen.float() > 0
    layers_to_cover = layers_of_row.cummax(0).values.tolist()
    for blocks, layers in enumerate(layers_to_cover, start=1):
        assert layers <= 2 * math.log2(blocks) + 1


@pytest.mark.parametrize("heads", [1, 2])
def test_stats_tell_the_density_asked_and_real_and_the_rows_at_the_floor(heads: int) -> None:
    config = SparsePatternConfig(sparsity_ratio=0.01)
    short, long = (
        BlockLayout.from_config([config] * heads, tokens, causal=True).stats() for tokens in (4096, 65536)
    )
    assert short.asked_density == long.asked_density == 0.01
    assert short.density == 189 / 2080
    assert short.rows_at_floor == 64 * heads
    assert long.density == 5248 / 524_800
    assert long.rows_at_floor is not None
    assert 0 < long.rows_at_floor < 600 * heads
    own = BlockLayout.from_dense(torch.eye(4, dtype=torch.bool), 64).stats()
    assert (own.asked_density, own.rows_at_floor, own.reach) == (None, None, 0)


def test_rows_at_the_floor_are_those_before_the_share_pays_for_it() -> None:
    config = SparsePatternConfig(sparsity_ratio=0.1, min_blocks=4)
    layout = BlockLayout.from_config(config, 64 * 100, causal=True)
    total, at_floor = 0, 0
    for i, row in enumerate(layout.rows()):
        total += len(row)
        at_floor += total > (i + 1) * (i + 2) // 2 // 10
    assert layout.stats().rows_at_floor == at_floor > 0
    assert made(6400, causal=False, ratio=0.1).stats().rows_at_floor == 0


def test_stats_of_windows_and_global_blocks() -> None:
    window = BlockLayout.from_config(SparsePatternConfig("local_window", window_size=256), 4096, causal=True)
    assert (window.stats().asked_density, window.stats().rows_at_floor) == (None, None)
    assert window.stats().reach == 256
    anchored = BlockLayout.from_config(SparsePatternConfig("global_local", sparsity_ratio=0.01), 4096)
    assert anchored.stats().rows_at_floor == 63  # all but the global row
    assert anchored.stats().reach == 63 * 64
    rich = BlockLayout.from_config(SparsePatternConfig("global_local", sparsity_ratio=0.5), 4096)
    assert rich.stats().rows_at_floor == 0


def test_stats_follow_a_layout_to_other_lengths_and_through_pickles() -> None:
    import pickle

    layout = made(4096, causal=True)
    assert pickle.loads(pickle.dumps(layout)).stats() == layout.stats()
    assert layout.for_lengths(4095, 4095).stats().asked_density == 0.01


def test_reach_is_the_farthest_block_that_a_query_sees() -> None:
    assert made(16384, causal=True).stats().reach == 128 * 64
    assert made(16384, causal=True, dilation_rates=[1, 2, 4, 8]).stats().reach == 8 * 64


@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window"])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_that_see_only_their_own_block_are_warned_of_once(kind: Any, causal: bool) -> None:
    warn_about_isolated_rows.cache_clear()
    config = SparsePatternConfig(kind, sparsity_ratio=0.01, min_blocks=1)
    with pytest.warns(UserWarning, match=r"keep only their diagonal block.*leave min_blocks out, or raise"):
        layout = BlockLayout.from_config(config, 4096, causal=causal)
    assert layout.hops_to_full_coverage() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlockLayout.from_config(config, 4096, causal=causal)
        BlockLayout.from_config(config, 4096, causal=not causal)
        BlockLayout.from_config(SparsePatternConfig(kind, sparsity_ratio=0.01), 4096, causal=causal)


def test_no_warning_where_every_row_has_a_second_block_or_there_is_none() -> None:
    warn_about_isolated_rows.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.4, min_blocks=1), 4096)
        BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.01, min_blocks=1), 64)
        BlockLayout.from_config(SparsePatternConfig("global_local", min_blocks=1), 4096, causal=True)


def test_heads_with_rotations_cover_every_scale_together() -> None:
    config = SparsePatternConfig(sparsity_ratio=0.001)
    alone = BlockLayout.from_config(config, 64 * 256, causal=True)
    heads = [dataclasses.replace(config, rotation=turns) for turns in range(8)]
    together = BlockLayout.from_config(heads, 64 * 256, causal=True)
    assert together.density == alone.density
    last = {255 - column for head in range(8) for column in together.rows(head)[255]}
    assert last == {0, 1, 2, 4, 8, 16, 32, 64, 128}
    assert (alone.hops_to_full_coverage(), together.hops_to_full_coverage()) == (13, 8)


@pytest.mark.parametrize("turns", [-1, 1.5, "1", True])
def test_rotation_must_be_a_number_of_offsets(turns: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rotation must be a number of offsets >= 0, got"):
        SparsePatternConfig(rotation=turns)


def test_rotation_belongs_to_dilated_sparse() -> None:
    with pytest.warns(UnusedFieldWarning, match="rotation=1 has no effect with pattern_type='local_window'"):
        assert SparsePatternConfig("local_window", rotation=1) == SparsePatternConfig("local_window")


def test_least_of_a_row_beside_a_window_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"min_blocks cannot be combined with window_size.*leave one of them out"
    ):
        SparsePatternConfig("local_window", window_size=100, min_blocks=9)


def test_hops_of_sequences_that_do_not_stack_are_refused() -> None:
    with pytest.raises(ValueError, match="q_len 300 and kv_len 1100 differ: such layers do not stack"):
        BlockLayout.from_config(SparsePatternConfig(), 300, 1100).hops_to_full_coverage()


# ---- masks inside blocks, and batch elements


def test_a_block_with_any_pair_counts_as_connected() -> None:
    masked = BlockLayout.from_mask_mod(lambda b, h, q, k: (q - k).abs() == 16, 160, block_size=16)
    whole = BlockLayout.from_dense(masked.to_dense(), 16)
    assert masked.stats().element_density < masked.density == whole.density
    assert [masked.coverage(layers) for layers in (1, 3, 9)] == [
        whole.coverage(layers) for layers in (1, 3, 9)
    ]
    assert masked.hops_to_full_coverage() == whole.hops_to_full_coverage()


def test_coverage_of_batch_elements_is_their_mean_and_hops_their_most() -> None:
    place = torch.arange(8)
    distance = (place[:, None] - place).abs()
    masks = [distance <= 1, distance <= 3]
    layout = BlockLayout.from_dense(torch.stack(masks)[:, None], 16)
    alone = [BlockLayout.from_dense(mask, 16) for mask in masks]
    for layers in (1, 2):
        assert layout.coverage(layers) == sum(each.coverage(layers) for each in alone) / 2
    assert [each.hops_to_full_coverage() for each in alone] == [7, 3]
    assert layout.hops_to_full_coverage() == 7
    apart = BlockLayout.from_dense(torch.stack([distance <= 3, distance == 0])[:, None], 16)
    assert apart.hops_to_full_coverage() is None
