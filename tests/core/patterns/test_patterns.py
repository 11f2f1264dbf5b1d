"""Every pattern compared with the slow definition: blocks, density, causal rows, and the rules of each."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.patterns.dilated_sparse import ColumnOrder, later_offsets
from tests.core.pattern_cases import LENGTHS, PATTERNS, layout_of, pattern_id
from tests.core.slow_definition import Pattern, blocks_of, pattern_rows, row_numbers

# min_blocks=1 is warned of
pytestmark = pytest.mark.filterwarnings("ignore:with sparsity_ratio")


# ---- against the slow definition


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rates", [[1, 2, 4, 8], [3], [7, 2], [1, 50, 1000]])
def test_few_offsets_are_the_first_of_all(rates: list[int], causal: bool) -> None:
    n_cols = 300
    every = later_offsets(rates, n_cols, causal, n_cols)
    near = sum(rate < n_cols for rate in rates)
    assert every.numel() == (n_cols - 1 - near) * (1 if causal else 2)
    assert every.abs().unique().numel() == n_cols - 1 - near
    for count in (0, 1, 10, 100):
        few = later_offsets(rates, n_cols, causal, count)
        assert few.numel() >= count
        assert few.tolist() == every[: few.numel()].tolist()


def test_rows_of_a_billion_tokens_need_few_offsets() -> None:
    config = SparsePatternConfig(block_size=128, sparsity_ratio=1e-5)
    grid = BlockGrid(1280, 10**9, 128, True, 10**9 - 1280)
    order = ColumnOrder(config, grid, torch.device("cpu"))
    assert order.n_offsets > 7_000_000
    columns, valid = order.columns(slice(0, 10), 300)
    assert columns.shape[1] == 300
    assert valid.sum(1).min() > 200
    assert order._later.numel() < 3000
