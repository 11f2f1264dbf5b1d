"""What the group UP writes and advises keeps the blocks of 0.2.0, read here from its rules for blocks."""

from __future__ import annotations

import warnings

import pytest

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.test_up_fixtures import SETTINGS

package = pytest.importorskip("dilated_attention_pytorch")

BLOCKS = 40


def window_then(block_size: int, window: int = 256) -> list[list[int]]:
    """The blocks of every row of a local window in 0.2.0: half of them on each side, rounded down."""
    side = window // block_size // 2
    return [list(range(max(0, row - side), min(BLOCKS, row + side + 1))) for row in range(BLOCKS)]


def written(source: str) -> object:
    """The config that the migrated code makes."""
    new = migrate_bytes("x.py", f"from dilated_attention_pytorch import {source}".encode(), SETTINGS).new
    assert new is not None
    namespace: dict[str, object] = {}
    exec(new, namespace)
    return namespace["config"]


def rows(config, causal: bool = False) -> list[list[int]]:
    layout = package.BlockLayout.from_config(config, BLOCKS * config.block_size, causal=causal)
    return [list(row) for row in layout.rows()]


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_the_default_pattern_keeps_its_blocks(block_size: int) -> None:
    config = written(
        f"SparsePatternConfig\nconfig = SparsePatternConfig(block_size={block_size}, sparsity_ratio=0.4)\n"
    )
    assert rows(config) == window_then(block_size)


def test_the_default_of_a_module_keeps_its_blocks() -> None:
    config = written("create_block_sparse_attention as create\nconfig = create('base').sparse_config\n")
    assert rows(config) == window_then(64)


def test_a_ratio_beside_the_window_of_the_default_is_not_asked_for() -> None:
    """Neither the codemod nor the package asks for another ratio where it has no effect."""
    source = b"from dilated_attention_pytorch import SparsePatternConfig\nconfig = SparsePatternConfig(sparsity_ratio=0.95)\n"
    result = migrate_bytes("x.py", source, SETTINGS)
    assert result.left == []
    notes = [entry for entry in result.rewritten if entry.rule == "UP003"]
    assert "has no effect beside window_size" in str(notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error", package.SparsityRatioWarning)
        config = written("SparsePatternConfig\nconfig = SparsePatternConfig(sparsity_ratio=0.95)\n")
    assert rows(config) == window_then(64)
    left = migrate_bytes("x.py", source, Settings(select=("UP001",))).left
    assert [entry.rule for entry in left] == ["UP102"]  # without UP003 the ratio decides


def test_a_causal_window_reaches_twice_as_far_back() -> None:
    """As the page of UP003 says."""
    config = written("SparsePatternConfig\nconfig = SparsePatternConfig()\n")
    for row, (then, now) in enumerate(zip(window_then(64), rows(config, causal=True))):
        assert [column for column in then if column <= row] == list(range(max(0, row - 2), row + 1))
        assert now == list(range(max(0, row - 4), row + 1))


@pytest.mark.parametrize("n_global", [1, 2, 3])
def test_global_tokens_times_the_block_size_are_the_global_blocks(n_global: int) -> None:
    """As UP103 advises."""
    config = package.SparsePatternConfig("global_local", window_size=256, global_tokens=n_global * 64)
    for row, now in enumerate(rows(config)):
        if row < n_global:
            assert now == list(range(BLOCKS))
        else:
            assert now == sorted({*range(n_global), *window_then(64)[row]})
