"""The patterns and BlockLayout, beside the slow definition."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.layout import BlockLists
from tests.core.slow_definition import Pattern, blocks_of, pattern_rows, reachable, row_numbers

REMOVED = (
    "Hierarchical variant has been removed due to poor memory efficiency. Use 'base' variant with "
    "pattern_type='dilated_sparse' and sparsity_ratio=0.01-0.05 (95-99% sparse) for better multi-scale coverage."
)

# The same examples on every run, and no deadline: a busy machine must not fail a test.
settings.register_profile("core", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")


def config_of(pattern: Pattern) -> SparsePatternConfig:
    return SparsePatternConfig(
        pattern_type=pattern.kind,
        block_size=pattern.block,
        sparsity_ratio=float(pattern.ratio),
        window_size=pattern.window,
        global_tokens=pattern.global_tokens,
        dilation_rates=pattern.rates,
        min_blocks=None if pattern.window is not None else pattern.least,
        rotation=pattern.rotation,
    )


# min_blocks=1 is warned of
pytestmark = pytest.mark.filterwarnings("ignore:with sparsity_ratio")


def layout_of(pattern: Pattern, q_len: int, kv_len: int | None = None, causal: bool = False) -> BlockLayout:
    return BlockLayout.from_config(config_of(pattern), q_len, kv_len, causal)


def listed(lists: BlockLists) -> list[list[int]]:
    """The indices of every list."""
    offsets, indices = lists.indptr.tolist(), lists.indices.tolist()
    return [indices[a:b] for a, b in itertools.pairwise(offsets)]


# ---- against the slow definition

RATIOS = ("0.001", "0.01", "0.07", "0.1", "0.29", "0.3", str(0.1 + 0.2), "0.5", "0.9", "1.0")

# name: (q_len, kv_len, causal), for blocks of 16 tokens
LENGTHS = {
    "one_token": (1, 1, False),
    "one_block": (16, 16, False),
    "square": (320, 320, False),
    "square_ragged": (333, 333, False),
    "causal_one_token": (1, 1, True),
    "causal": (320, 320, True),
    "causal_ragged": (345, 345, True),
    "cross_wide": (100, 400, False),
    "cross_tall": (400, 100, False),
    "cross_ragged": (77, 261, False),
    "cross_one_query": (1, 300, False),
    "cross_one_key": (300, 1, False),
    "decoding": (1, 333, True),
    "decoding_first_of_block": (1, 321, True),
    "decoding_last_of_block": (1, 320, True),
    "chunk_at_block_start": (48, 304, True),
    "chunk_in_middle_of_block": (50, 301, True),
    "chunk_within_one_block": (5, 300, True),
    "queries_before_first_key": (300, 100, True),
    "queries_before_first_key_in_middle_of_block": (301, 100, True),
    "queries_before_first_key_same_block": (40, 37, True),
    "one_key_causal": (40, 1, True),
}

PATTERNS = [
    *(Pattern("dilated_sparse", ratio) for ratio in RATIOS),
    *(Pattern("dilated_sparse", ratio, rates=(1, 2, 4, 8)) for ratio in RATIOS),
    *(Pattern("dilated_sparse", ratio, rates=(3,)) for ratio in ("0.1", "0.29", "0.9", "1.0")),
    *(Pattern("dilated_sparse", ratio, rates=(5, 2)) for ratio in ("0.1", "0.3", "0.9", "1.0")),
    # rates that run dry: the nearest blocks fill the budget
    *(Pattern("dilated_sparse", ratio, rates=(7, 7, 19)) for ratio in ("0.07", "0.3", "0.9")),
    *(Pattern("dilated_sparse", ratio, rates=(1000,)) for ratio in ("0.07", "0.3", "0.9")),
    *(Pattern("dilated_sparse", ratio, least=1) for ratio in RATIOS[:5]),
    *(Pattern("dilated_sparse", "0.07", rates=(1, 2, 4, 8), least=least) for least in (2, 4, 6, 1000)),
    *(Pattern("dilated_sparse", "0.01", rates=(4, 1, 4, 3, 9), least=least) for least in (1, 2, 5)),
    *(Pattern("dilated_sparse", "0.07", rotation=turns) for turns in (1, 2, 5, 1000)),
    *(Pattern("local_window", "0.01", least=least) for least in (1, 3, 1000)),
    *(Pattern("global_local", "0.01", global_tokens=40, least=least) for least in (1, 3, 5, 1000)),
    *(Pattern("local_window", ratio) for ratio in RATIOS),
    *(Pattern("local_window", "0.1", window=window) for window in (1, 16, 32, 63, 64, 100, 1000, 10**6)),
    *(Pattern("global_local", ratio) for ratio in RATIOS),
    *(Pattern("global_local", ratio, global_tokens=1) for ratio in RATIOS),
    *(Pattern("global_local", ratio, global_tokens=40) for ratio in RATIOS),
    *(Pattern("global_local", "0.3", global_tokens=tokens) for tokens in (16, 17, 160, 10**6)),
    *(Pattern("global_local", "0.1", window=window, global_tokens=40) for window in (1, 32, 100, 10**6)),
]


def pattern_id(pattern: Pattern) -> str:
    parts = [pattern.kind, pattern.ratio]
    if pattern.window is not None:
        parts.append(f"window{pattern.window}")
    if pattern.global_tokens:
        parts.append(f"global{pattern.global_tokens}")
    if pattern.rates is not None:
        parts.append("rates" + "_".join(map(str, pattern.rates)))
    if pattern.least is not None:
        parts.append(f"least{pattern.least}")
    if pattern.rotation:
        parts.append(f"rotation{pattern.rotation}")
    return "-".join(parts)


@pytest.mark.parametrize("pattern", PATTERNS, ids=pattern_id)
def test_layout_is_the_slow_definition(pattern: Pattern) -> None:
    layouts = {name: layout_of(pattern, *lengths).rows() for name, lengths in LENGTHS.items()}
    assert layouts == {name: pattern_rows(pattern, *lengths) for name, lengths in LENGTHS.items()}


patterns = st.one_of(
    st.builds(
        Pattern,
        kind=st.just("dilated_sparse"),
        ratio=st.integers(1, 1000).map(lambda thousandths: str(thousandths / 1000)),
        rates=st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
        least=st.none() | st.integers(1, 9),
        rotation=st.integers(0, 9),
    ),
    st.builds(
        Pattern,
        kind=st.just("local_window"),
        ratio=st.integers(1, 1000).map(lambda thousandths: str(thousandths / 1000)),
        window=st.none() | st.integers(1, 400),
        least=st.none() | st.integers(1, 9),
    ),
    st.builds(
        Pattern,
        kind=st.just("global_local"),
        ratio=st.integers(1, 1000).map(lambda thousandths: str(thousandths / 1000)),
        window=st.none() | st.integers(1, 400),
        least=st.none() | st.integers(1, 9),
        global_tokens=st.integers(0, 120),
    ),
)


@given(patterns, st.integers(1, 400), st.integers(1, 400), st.booleans())
@settings(max_examples=300)
def test_any_layout_is_the_slow_definition(pattern: Pattern, q_len: int, kv_len: int, causal: bool) -> None:
    assert layout_of(pattern, q_len, kv_len, causal).rows() == pattern_rows(pattern, q_len, kv_len, causal)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_block_size_is_the_slow_definition(kind: str, block: int, causal: bool) -> None:
    pattern = Pattern(kind, "0.2", block, global_tokens=100 if kind == "global_local" else 0)
    assert layout_of(pattern, 5000, 5000, causal).rows() == pattern_rows(pattern, 5000, 5000, causal)


def test_rows_taken_in_several_groups_are_the_slow_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are built some rows at a time."""
    from dilated_attention_pytorch.patterns import dilated_sparse

    monkeypatch.setattr(dilated_sparse, "CANDIDATES_PER_GROUP", 500)
    for ratio, rates in itertools.product(("0.05", "0.4"), (None, (7, 7, 19), (9,))):
        pattern = Pattern("dilated_sparse", ratio, rates=rates)
        for q_len, kv_len, causal in (
            (900, 900, False),
            (900, 900, True),
            (200, 900, True),
            (900, 200, True),
        ):
            layout = layout_of(pattern, q_len, kv_len, causal)
            assert layout.rows() == pattern_rows(pattern, q_len, kv_len, causal)


# ---- density


def test_one_percent_of_16384_tokens_is_655_blocks() -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.01, block_size=64), 16_384)
    assert layout.num_active_blocks == 655
    assert layout.rows() == pattern_rows(Pattern("dilated_sparse", "0.01", 64), 16_384, 16_384, False)


@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
def test_ratio_is_read_as_the_decimal_that_was_written(kind: str) -> None:
    """In binary 0.29 * 100 is 28.999..., and 10 * 10 blocks would be one short."""
    assert layout_of(Pattern(kind, "0.29"), 160).num_active_blocks == 29


@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
@pytest.mark.parametrize("causal", [False, True])
@given(st.integers(1, 1000), st.integers(1, 1500), st.integers(1, 6))
def test_total_is_exact_where_the_share_pays_for_the_floor(
    kind: str, causal: bool, thousandths: int, length: int, least: int
) -> None:
    ratio = Fraction(thousandths, 1000)
    layout = layout_of(Pattern(kind, str(thousandths / 1000), least=least), length, causal=causal)
    n = blocks_of(length, 16)
    available = n * (n + 1) // 2 if causal else n * n
    floors = [min(least, row + 1) if causal else min(least, n) for row in range(n)]
    counts = [len(row) for row in layout.rows()]
    assert all(count >= floor for count, floor in zip(counts, floors, strict=True))
    wanted = ratio * available // 1
    first_row = n - 1 if kind == "global_local" and not causal else 0  # it sees all
    if not causal:
        assert sum(counts) == max(wanted, sum(floors), least_of_global(n, least) if first_row else 0)
    assert sum(counts) >= wanted
    if causal and kind != "global_local" and n and ratio * n >= least and sum(counts[-1:]) > least:
        assert sum(counts) == wanted


def least_of_global(n: int, least: int) -> int:
    """Blocks of n rows not causal when the first sees all, and all others it, their own and what else the floor says."""
    return n + (n - 1) * min(n, max(2, least))


@given(st.integers(1, 1000), st.integers(1, 60), st.integers(1, 6))
def test_running_total_is_never_more_than_a_block_from_the_ratio(
    thousandths: int, n: int, least: int
) -> None:
    """Also in between: no stretch of rows pays for another."""
    pattern = Pattern("dilated_sparse", str(thousandths / 1000), least=least)
    totals = list(itertools.accumulate(len(row) for row in layout_of(pattern, n * 16).rows()))
    for i, total in enumerate(totals):
        assert total == max(Fraction(thousandths, 1000) * (i + 1) * n // 1, (i + 1) * min(least, n))


@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
@pytest.mark.parametrize("lengths", [(320, 320, False), (100, 400, False), (320, 320, True), (50, 301, True)])
def test_every_row_keeps_its_diagonal_block(kind: str, lengths: tuple[int, int, bool]) -> None:
    q_len, kv_len, causal = lengths
    rows = layout_of(Pattern(kind, "0.001"), q_len, kv_len, causal).rows()
    numbers = row_numbers(q_len, kv_len, 16, causal)
    for number, row in zip(numbers, rows, strict=True):
        assert (number if causal else number * blocks_of(kv_len, 16) // len(rows)) in row


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
def test_ratio_one_keeps_every_block(kind: str, causal: bool) -> None:
    layout = layout_of(Pattern(kind, "1.0"), 500, causal=causal)
    assert layout.density == 1.0
    expected = torch.ones(32, 32, dtype=torch.bool)
    assert torch.equal(layout.to_dense(), expected.tril() if causal else expected)


def test_density_counts_what_dense_attention_of_the_same_lengths_computes() -> None:
    assert layout_of(Pattern("local_window", "1.0"), 64, 160, causal=True).density == 1.0
    assert layout_of(Pattern("local_window", "1.0"), 160, 64, causal=True).density == 1.0
    assert layout_of(Pattern("local_window", "0.25"), 320).density == 0.25


# ---- causal layouts do not depend on the length


@given(patterns, st.integers(1, 500), st.integers(1, 500))
@settings(max_examples=150)
def test_causal_rows_are_the_same_whatever_the_length(pattern: Pattern, short: int, long: int) -> None:
    short, long = sorted((short, long))
    rows = layout_of(pattern, long, causal=True).rows()
    assert layout_of(pattern, short, causal=True).rows() == rows[: blocks_of(short, 16)]


@given(patterns, st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=150)
def test_causal_chunk_is_the_last_rows_of_the_square_layout(
    pattern: Pattern, q_len: int, kv_len: int
) -> None:
    q_len, kv_len = sorted((q_len, kv_len))
    square = layout_of(pattern, kv_len, causal=True).rows()
    assert layout_of(pattern, q_len, kv_len, causal=True).rows() == square[(kv_len - q_len) // 16 :]


@given(patterns, st.integers(2, 400), st.integers(1, 400))
def test_causal_rows_before_the_first_key_are_empty(pattern: Pattern, q_len: int, kv_len: int) -> None:
    kv_len, q_len = sorted((q_len, kv_len))
    rows = layout_of(pattern, q_len, kv_len, causal=True).rows()
    n_before = -((kv_len - q_len) // 16)
    assert rows[:n_before] == [[]] * n_before
    assert rows[n_before:] == layout_of(pattern, kv_len, causal=True).rows()


# ---- the patterns' own rules


@pytest.mark.parametrize("window", [1, 15, 16, 17, 32, 33, 64, 100, 159])
@pytest.mark.parametrize("kind", ["local_window", "global_local"])
def test_window_keeps_its_promise_in_tokens(kind: str, window: int) -> None:
    """Every query sees the tokens of the window, and less than a block more than them on a side, beside its own."""
    for causal in (False, True):
        dense = layout_of(Pattern(kind, window=window), 320, causal=causal).to_dense()
        seen = dense.repeat_interleave(16, 0).repeat_interleave(16, 1)
        before, after = (window, 0) if causal else (-(-window // 2), window // 2)
        for i in range(320):
            assert seen[i, max(0, i - before) : i + 1 + after].all()
            first, last = i // 16 * 16 - (before + 15), i // 16 * 16 + 15 + (0 if causal else before + 15)
            beyond = seen[i].clone()
            beyond[max(0, first) : last + 1] = False
            beyond[: 16 if kind == "global_local" else 0] = False
            assert not beyond.any() or (kind == "global_local" and i < 16)


def test_causal_window_of_256_tokens_sees_256_past_tokens() -> None:
    config = SparsePatternConfig("local_window", window_size=256)
    rows = BlockLayout.from_config(config, 64 * 12, causal=True).rows()
    assert rows[9] == [5, 6, 7, 8, 9]


def test_window_size_overrides_the_ratio() -> None:
    for kind in ("local_window", "global_local"):
        layouts = [layout_of(Pattern(kind, ratio, window=64), 640).rows() for ratio in ("0.01", "0.9")]
        assert layouts[0] == layouts[1]
        assert set(layouts[0][10]) - {0} == {8, 9, 10, 11, 12}


def test_ties_go_to_the_lower_column() -> None:
    assert layout_of(Pattern("local_window", "0.2"), 160).rows()[5] == [4, 5]
    assert layout_of(Pattern("dilated_sparse", "0.3", rates=(3,)), 160).rows()[5] == [2, 5, 8]


def test_global_local_has_one_global_block_at_least() -> None:
    without, with_one = (layout_of(Pattern("global_local", "0.3", global_tokens=n), 640) for n in (0, 1))
    assert without.rows() == with_one.rows()
    assert without.to_dense()[:, 0].all()


def test_global_blocks_see_all_and_are_seen_by_all() -> None:
    dense = layout_of(Pattern("global_local", "0.3", global_tokens=17), 640).to_dense()
    assert dense[:2].all()
    assert dense[:, :2].all()


def test_default_rates_reach_every_scale_whatever_the_length() -> None:
    row = layout_of(Pattern("dilated_sparse", "0.2"), 16 * 128).rows()[64]
    assert {64 - 2**power for power in range(6)} | {64 + 2**power for power in range(6)} <= set(row)


# ---- BlockLayout


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
    start = time.perf_counter()
    layout = BlockLayout.from_config(config, 1_048_576)
    seconds = time.perf_counter() - start
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


# ---- coverage


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        Pattern("dilated_sparse", "0.3", rates=(1, 4)),
        Pattern("dilated_sparse", "0.2", rates=(2,)),
        Pattern("local_window", "0.25"),
        Pattern("local_window", window=16),
        Pattern("global_local", "0.1", global_tokens=16),
    ],
    ids=pattern_id,
)
def test_coverage_and_hops_are_those_of_matrix_powers(pattern: Pattern, causal: bool) -> None:
    n = 12
    layout = layout_of(pattern, n * 16, causal=causal)
    rows = pattern_rows(pattern, n * 16, n * 16, causal)
    allowed = {(i, j) for i in range(n) for j in range(i + 1 if causal else n)}
    hops = None
    for layers in range(1, n + 1):
        pairs = reachable(rows, layers) & allowed
        assert layout.coverage(layers) == pytest.approx(len(pairs) / len(allowed))
        if hops is None and pairs == allowed:
            hops = layers
    assert layout.hops_to_full_coverage() == hops


@given(st.integers(1, 8), st.integers(0, 2**32), st.floats(0, 0.6))
def test_coverage_of_any_mask_is_that_of_matrix_powers(n: int, seed: int, density: float) -> None:
    mask = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    layout = BlockLayout.from_dense(mask, 16)
    rows = [row.nonzero().flatten().tolist() for row in mask]
    shares = [len(reachable(rows, layers)) / n**2 for layers in range(1, n + 1)]
    assert [layout.coverage(layers) for layers in range(1, n + 1)] == pytest.approx(shares)
    assert layout.hops_to_full_coverage() == (shares.index(1.0) + 1 if 1.0 in shares else None)


def test_coverage_joins_the_heads() -> None:
    eye = torch.eye(6, dtype=torch.bool)
    layout = BlockLayout.from_dense(torch.stack([eye, eye.roll(1, 1)]), 16)
    assert layout.coverage(1) == pytest.approx(2 / 6)
    assert layout.hops_to_full_coverage() == 5


def test_coverage_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        layout_of(Pattern("local_window"), 64).coverage(0)
    with pytest.raises(ValueError, match="q_len 64 and kv_len 128 differ"):
        layout_of(Pattern("local_window"), 64, 128).coverage(2)


# ---- plot


@pytest.mark.parametrize(
    "lengths", [(320, 320, False), (64, 320, True), (320, 64, True), (20_000, 20_000, False)]
)
def test_plot_draws_the_blocks(lengths: tuple[int, int, bool]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    layout = layout_of(Pattern("dilated_sparse", "0.2"), *lengths)
    axes = layout.plot()
    (image,) = axes.get_images()
    drawn = torch.as_tensor(image.get_array().data)
    assert max(drawn.shape) <= 512
    if lengths[0] < 1000:
        assert torch.equal(drawn > 0, layout.to_dense())
    assert axes.get_title()
    assert layout.plot(ax=axes) is axes
    axes.figure.canvas.draw()
    matplotlib.pyplot.close(axes.figure)


def test_plot_of_a_head_that_is_not_there_names_it() -> None:
    with pytest.raises(ValueError, match="head must be 0 to 0, got 3"):
        layout_of(Pattern("local_window"), 64).plot(head=3)


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


def test_token_dilation_of_rate_one_is_none() -> None:
    assert TokenDilation.from_user([2048], [1], 64) is None
    assert TokenDilation.from_user([64, 128], [1, 1], 64) is None
    assert TokenDilation.from_user(None, None, 64) is None


@pytest.mark.parametrize(
    ("segment_lengths", "dilation_rates", "message"),
    [
        ([2048], None, "dilation_rates is None"),
        (None, [1], "segment_lengths is None"),
        ([2048, 4096], [1], r"same length.*\[2048, 4096\] and \[1\]"),
        ([], [], r"same length >= 1, got \[\] and \[\]"),
        ([4096, 2048], [1, 2], r"segment_lengths must be ascending, got \[4096, 2048\]"),
        ([2048, 2048], [1, 2], r"segment_lengths must be ascending, got \[2048, 2048\]"),
        ([100], [1], r"segment_lengths must be multiples of block_size 64, got 100 in \[100\]"),
        ([0], [1], "segment_lengths must be multiples of block_size 64, got 0"),
        ([2048.0], [1], "segment_lengths must be multiples of block_size 64, got 2048.0"),
        ([2048], [3], r"dilation_rates must divide block_size 64, got 3 in \[3\]"),
        ([2048], [128], "dilation_rates must divide block_size 64, got 128"),
        ([2048], [0], "dilation_rates must divide block_size 64, got 0"),
        ([2048], [-1], "dilation_rates must divide block_size 64, got -1"),
    ],
)
def test_token_dilation_errors_name_argument_and_value(
    segment_lengths: list[int] | None, dilation_rates: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenDilation.from_user(segment_lengths, dilation_rates, 64)


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern_type": "dense"}, "pattern_type must be one of .*'local_window'.*got 'dense'"),
        ({"block_size": 48}, "block_size must be .*got 48"),
        ({"block_size": 8}, "block_size must be .*got 8"),
        ({"block_size": 512}, "block_size must be .*got 512"),
        ({"block_size": 64.0}, "block_size must be .*got 64.0"),
        ({"block_size": True}, "block_size must be .*got True"),
        ({"sparsity_ratio": 0}, "sparsity_ratio must be .*got 0"),
        ({"sparsity_ratio": -0.1}, "sparsity_ratio must be .*got -0.1"),
        ({"sparsity_ratio": 1.01}, "sparsity_ratio must be .*got 1.01"),
        ({"sparsity_ratio": float("nan")}, "sparsity_ratio must be .*got nan"),
        ({"sparsity_ratio": "0.1"}, "sparsity_ratio must be .*got '0.1'"),
        ({"sparsity_ratio": True}, "sparsity_ratio must be .*got True"),
        ({"window_size": 128}, "window_size does not apply to pattern_type='dilated_sparse', got 128"),
        ({"pattern_type": "local_window", "window_size": 0}, "window_size must be .*got 0"),
        ({"pattern_type": "local_window", "window_size": 1.5}, "window_size must be .*got 1.5"),
        ({"global_tokens": -1}, "global_tokens must be .*got -1"),
        ({"pattern_type": "global_local", "global_tokens": 1.0}, "global_tokens must be .*got 1.0"),
        ({"global_tokens": 64}, "global_tokens does not apply to pattern_type='dilated_sparse'.*64"),
        (
            {"pattern_type": "local_window", "global_tokens": 64},
            "global_tokens does not apply.*'local_window'.*64",
        ),
        (
            {"pattern_type": "local_window", "dilation_rates": [1, 2]},
            r"dilation_rates does not apply.*\(1, 2\)",
        ),
        ({"dilation_rates": []}, r"dilation_rates must be .*got \(\)"),
        ({"dilation_rates": [1, 0]}, r"dilation_rates must be .*got \(1, 0\)"),
        ({"dilation_rates": [1.5]}, r"dilation_rates must be .*got \(1.5,\)"),
    ],
)
def test_config_errors_name_argument_and_value(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsePatternConfig(**arguments)


def test_hierarchical_pattern_says_that_it_was_removed() -> None:
    with pytest.raises(ValueError) as error:
        SparsePatternConfig(pattern_type="hierarchical")
    assert str(error.value) == REMOVED


def test_config_takes_its_fields_in_the_old_order() -> None:
    config = SparsePatternConfig("global_local", 32, 0.2, 256, 64, None)
    assert (config.pattern_type, config.block_size, config.sparsity_ratio) == ("global_local", 32, 0.2)
    assert (config.window_size, config.global_tokens, config.dilation_rates) == (256, 64, None)


def test_config_is_frozen_and_hashable() -> None:
    config = SparsePatternConfig(dilation_rates=[1, 2])
    assert config == SparsePatternConfig(dilation_rates=(1, 2))
    assert hash(config) == hash(SparsePatternConfig(dilation_rates=(1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_size = 32


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
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_config(*arguments)


@pytest.mark.parametrize(
    ("mask", "lengths", "message"),
    [
        (torch.ones(4, 4), (), r"mask must be bool.*torch.float32 \(4, 4\)"),
        (torch.ones(4, dtype=torch.bool), (), r"mask must be bool.*\(4,\)"),
        (torch.ones(1, 2, 4, 4, dtype=torch.bool), (), r"mask must be bool.*\(1, 2, 4, 4\)"),
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
