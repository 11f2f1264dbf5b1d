"""BlockLayout: its lists, where they come from, what they take of memory and time, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import TokenDilation
from tests.core.pattern_cases import LENGTHS, PATTERNS, config_of, layout_of, listed
from tests.core.slow_definition import Pattern

# min_blocks=1 is warned of
pytestmark = pytest.mark.filterwarnings("ignore:with sparsity_ratio")


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("per_head", [False, True])
def test_column_lists_are_the_transpose_of_the_row_lists(name: str, per_head: bool) -> None:
    q_len, kv_len, causal = LENGTHS[name]
    configs = [
        config_of(Pattern("dilated_sparse", "0.3")),
        config_of(Pattern("global_local", global_tokens=20)),
    ]
    layout = BlockLayout.from_config(configs if per_head else configs[0], q_len, kv_len, causal)
    heads = range(layout.num_heads)
    n_rows, n_cols = layout.stats().num_rows, layout.stats().num_cols
    by_row, by_col = listed(layout.row_lists), listed(layout.col_lists)
    assert len(by_row) == layout.num_heads * n_rows
    assert len(by_col) == layout.num_heads * n_cols
    pairs = [(h, row, col) for h in heads for row in range(n_rows) for col in by_row[h * n_rows + row]]
    transposed = [(h, row, col) for h in heads for col in range(n_cols) for row in by_col[h * n_cols + col]]
    assert sorted(transposed) == pairs
    for indices in by_row + by_col:
        assert indices == sorted(set(indices))
    # `entries` names the place in the row lists
    assert layout.row_lists.block_ids.tolist() == list(range(len(pairs)))
    assert [pairs[entry] for entry in layout.col_lists.block_ids.tolist()] == transposed
    for lists in (layout.row_lists, layout.col_lists):
        assert {lists.indptr.dtype, lists.indices.dtype, lists.block_ids.dtype} == {torch.int32}


def test_coo_lists_the_blocks_in_the_order_of_the_rows() -> None:
    layout = BlockLayout.from_config([SparsePatternConfig(), SparsePatternConfig("local_window")], 700)
    expected = [(h, i, j) for h in range(2) for i, row in enumerate(layout.rows(h)) for j in row]
    assert list(zip(*(x.tolist() for x in layout.coo()), strict=True)) == expected


@pytest.mark.parametrize("name", LENGTHS)
def test_dense_round_trip(name: str) -> None:
    q_len, kv_len, causal = LENGTHS[name]
    layout = layout_of(Pattern("dilated_sparse", "0.3"), q_len, kv_len, causal)
    again = BlockLayout.from_dense(layout.to_dense(), 16, q_len, kv_len, causal)
    assert again.rows() == layout.rows()
    assert listed(again.col_lists) == listed(layout.col_lists)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.floats(0, 1))
def test_any_dense_mask_survives(heads: int, n_rows: int, n_cols: int, seed: int, density: float) -> None:
    """Empty rows, columns and layouts too."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, n_rows, n_cols, generator=generator) < density
    layout = BlockLayout.from_dense(mask, 32)
    assert torch.equal(layout.to_dense(), mask[0] if heads == 1 else mask)
    assert layout.num_active_blocks == int(mask.sum())
    assert (layout.q_len, layout.kv_len) == (n_rows * 32, n_cols * 32)
    for head in range(heads):
        assert layout.rows(head) == [row.nonzero().flatten().tolist() for row in mask[head]]


def test_sequence_of_configs_gives_each_head_its_own_pattern() -> None:
    configs = [
        SparsePatternConfig("dilated_sparse", sparsity_ratio=0.2),
        SparsePatternConfig("local_window", window_size=128),
        SparsePatternConfig("global_local", global_tokens=64, sparsity_ratio=0.3),
        SparsePatternConfig("local_window", window_size=128),
    ]
    layout = BlockLayout.from_config(configs, 1000, causal=True)
    assert layout.num_heads == 4
    singles = [BlockLayout.from_config(config, 1000, causal=True) for config in configs]
    assert [layout.rows(head) for head in range(4)] == [single.rows() for single in singles]
    assert layout.num_active_blocks == sum(single.num_active_blocks for single in singles)
    assert layout.density == pytest.approx(sum(single.density for single in singles) / 4)


def test_layout_is_immutable() -> None:
    layout = layout_of(Pattern("local_window"), 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.num_heads = 2


def test_stats_count_the_blocks() -> None:
    layout = layout_of(Pattern("global_local", "0.3", global_tokens=16), 320, causal=True)
    counts = [len(row) for row in layout.rows()]
    stats = layout.stats()
    assert (stats.num_rows, stats.num_cols, stats.num_heads) == (20, 20, 1)
    assert stats.num_active_blocks == sum(counts)
    assert stats.num_available_blocks == 210
    assert stats.density == layout.density == sum(counts) / 210
    assert (stats.min_blocks_per_row, stats.max_blocks_per_row) == (min(counts), max(counts))
    assert stats.mean_blocks_per_row == pytest.approx(sum(counts) / 20)
    # offsets of 20 rows and 20 columns, then indices and entries of both
    assert stats.num_bytes == 4 * (21 + 21 + 4 * sum(counts))


def test_repr_names_the_figures() -> None:
    text = repr(BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.01), 16_384))
    for part in (
        "q_len=16384",
        "kv_len=16384",
        "block_size=64",
        "causal=False",
        "num_active_blocks=655",
        "cpu",
    ):
        assert part in text


def test_layout_moves_to_its_own_device_without_a_copy() -> None:
    layout = layout_of(Pattern("local_window"), 64)
    assert layout.to("cpu") is layout


@pytest.mark.gpu
@pytest.mark.parametrize("name", LENGTHS)
def test_layout_built_on_the_gpu_is_the_one_built_on_the_cpu(name: str) -> None:
    q_len, kv_len, causal = LENGTHS[name]
    for pattern in PATTERNS:
        on_cpu = layout_of(pattern, q_len, kv_len, causal)
        on_gpu = BlockLayout.from_config(config_of(pattern), q_len, kv_len, causal, device="cuda")
        assert on_gpu.device.type == "cuda"
        for mine, other in ((on_gpu.row_lists, on_cpu.row_lists), (on_gpu.col_lists, on_cpu.col_lists)):
            assert torch.equal(mine.indptr.cpu(), other.indptr)
            assert torch.equal(mine.indices.cpu(), other.indices)
            assert torch.equal(mine.block_ids.cpu(), other.block_ids)


# ---- memory and time


def test_million_tokens_build_in_seconds_and_megabytes() -> None:
    config = SparsePatternConfig(sparsity_ratio=0.01, block_size=128)
    start = time.process_time()
    layout = BlockLayout.from_config(config, 1_048_576)
    seconds = time.process_time() - start
    assert layout.num_active_blocks == 8192 * 8192 // 100
    assert seconds < 5
    assert layout.stats().num_bytes < 12e6  # 4 int32 for each of the 671,088 blocks


BUILD_AND_MEASURE = """
import resource
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
configs = [
    SparsePatternConfig(sparsity_ratio=0.0003, block_size=16),
    SparsePatternConfig("local_window", sparsity_ratio=0.0003, block_size=16),
    SparsePatternConfig("global_local", window_size=512, global_tokens=32, block_size=16),
]
for length in (4096, 1_048_576):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    active = [BlockLayout.from_config(c, length, causal=x).num_active_blocks for c in configs for x in (False, True)]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, *active)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_follows_the_active_blocks() -> None:
    """65,536 x 65,536 blocks would be 4.3 GB as one byte each; 0.6 to 2.5 million of them are active."""
    command = [sys.executable, "-c", BUILD_AND_MEASURE]
    grown, *active = map(
        int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    assert all(5e5 < blocks < 3e6 for blocks in active)
    assert grown < 600e6


@pytest.mark.gpu
def test_million_tokens_build_on_the_gpu_within_a_second_and_100_megabytes() -> None:
    config = SparsePatternConfig(sparsity_ratio=0.01, block_size=128)
    BlockLayout.from_config(config, 65_536, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    layout = BlockLayout.from_config(config, 1_048_576, device="cuda")
    torch.cuda.synchronize()
    assert time.perf_counter() - start < 1
    assert torch.cuda.max_memory_allocated() - before < 100e6
    assert layout.num_active_blocks == 671_088


# ---- token dilation


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(320, 320), (50, 301)])
def test_token_dilation_splits_every_list_by_distance(lengths: tuple[int, int], causal: bool) -> None:
    layout = layout_of(Pattern("dilated_sparse", "0.5"), *lengths, causal=causal)
    dilation = TokenDilation((32, 96), (1, 4))
    by_row, by_col = layout.lists(dilation)
    first_row = (lengths[1] - lengths[0]) // 16 if causal else 0

    def split(pairs: list[int], origin: int) -> list[list[int]]:
        near = [index for index in pairs if abs(index - origin) * 16 < 32]
        return [near, [index for index in pairs if index not in near]]

    rows = [part for i, row in enumerate(listed(layout.row_lists)) for part in split(row, i + first_row)]
    cols = [part for j, col in enumerate(listed(layout.col_lists)) for part in split(col, j - first_row)]
    assert listed(by_row) == rows
    assert listed(by_col) == cols
    assert by_row.indices[by_row.block_ids.long().argsort()].tolist() == layout.row_lists.indices.tolist()


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SparsePatternConfig(), 0), "q_len must be .*got 0"),
        ((SparsePatternConfig(), -5), "q_len must be .*got -5"),
        ((SparsePatternConfig(), 64, 0), "kv_len must be .*got 0"),
        ((SparsePatternConfig(), 64.0), "q_len must be .*got 64.0"),
        (([], 64), r"config must be a SparsePatternConfig or a sequence of them, got \[\]"),
        ((["dilated_sparse"], 64), "config must be a SparsePatternConfig.*'dilated_sparse'"),
        (
            ([SparsePatternConfig(block_size=32), SparsePatternConfig(block_size=64)], 64),
            r"same block_size, got \[32, 64\]",
        ),
    ],
)
def test_from_config_errors_name_argument_and_value(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        BlockLayout.from_config(*arguments)


@pytest.mark.parametrize(
    ("mask", "lengths", "message"),
    [
        (torch.ones(4, 4), (), r"mask must be bool.*torch.float32 \(4, 4\)"),
        (torch.ones(4, dtype=torch.bool), (), r"mask must be bool.*\(4,\)"),
        (torch.ones(1, 1, 2, 4, 4, dtype=torch.bool), (), r"mask must be bool.*\(1, 1, 2, 4, 4\)"),
        (
            torch.ones(4, 4, dtype=torch.bool),
            (100, 64),
            "4 x 4 blocks, but q_len 100, kv_len 64.* need 7 x 4",
        ),
    ],
)
def test_from_dense_errors_name_argument_and_value(
    mask: torch.Tensor, lengths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_dense(mask, 16, *lengths)
