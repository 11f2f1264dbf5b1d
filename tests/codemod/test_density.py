"""Old densities against the removed algorithm, written out block by block."""

from __future__ import annotations

import pytest

from migrate_hierarchical.density import LEVELS, density, new_blocks, old_blocks


def slow_old_blocks(levels, seq_len: int, block_size: int) -> int:
    n = seq_len // block_size
    active = set()
    for level in levels:
        for row in range(0, n, max(1, level["stride"] // block_size)):
            if level["window_size"] == -1:
                cols = range(n)
            else:
                half = max(1, level["window_size"] // block_size) // 2
                cols = range(max(0, row - half), min(n, row + half + 1))
            active.update((row, col) for col in cols)
    return len(active) or n


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("seq_len", "block_size"), [(1024, 64), (4096, 64), (5000, 128), (2048, 32)])
def test_old_blocks(name: str, seq_len: int, block_size: int) -> None:
    assert old_blocks(LEVELS[name], seq_len, block_size) == slow_old_blocks(LEVELS[name], seq_len, block_size)


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [{"stride": 1024, "window_size": 256}],
        [{"stride": 128, "window_size": 64}, {"stride": 256, "window_size": -1}],
    ],
)
def test_old_blocks_of_odd_levels(levels) -> None:
    assert old_blocks(levels, 4096, 64) == slow_old_blocks(levels, 4096, 64)


def test_figures_of_the_removal_notice() -> None:
    assert old_blocks(LEVELS["standard"], 16_384) == 5858
    assert old_blocks(LEVELS["long_range"], 16_384) == 65_536
    assert new_blocks(0.01, 16_384) == 655


def test_new_blocks_are_those_of_the_package() -> None:
    package = pytest.importorskip("dilated_attention_pytorch")
    for ratio in (0.01, 0.05, 0.29, 1.0):
        config = package.SparsePatternConfig(sparsity_ratio=ratio, block_size=64)
        assert new_blocks(ratio, 4096) == package.BlockLayout.from_config(config, 4096).num_active_blocks


def test_too_short_a_sequence_has_no_density() -> None:
    assert density("default", LEVELS["standard"], 0.01, 32) is None


def test_each_side_has_its_own_block_size() -> None:
    same = density("default", LEVELS["standard"], 0.01, 16_384, 256)
    other = density("default", LEVELS["standard"], 0.01, 16_384, 512, 256)
    assert same is not None
    assert other is not None
    assert other.before == old_blocks(LEVELS["standard"], 16_384, 512) / 32**2
    assert other.after == same.after
    assert density("default", LEVELS["standard"], 0.01, 300, 512, 256) is None
