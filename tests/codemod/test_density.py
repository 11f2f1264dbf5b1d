"""What old and new patterns keep and connect, against the removed algorithm block by block and against the package."""

from __future__ import annotations

import time

import pytest

from migrate_hierarchical import density
from migrate_hierarchical.density import (
    LEVELS,
    Comparison,
    Figures,
    exact_percent,
    layers_to_full_coverage,
    levels_of,
    new_blocks,
    new_figures,
    old_blocks,
    old_figures,
    old_rows,
    percent,
)
from tests.codemod.cases import FIXTURES

STANDARD = levels_of(LEVELS["standard"])
ODD_LEVELS = [
    [],
    [{"stride": 1024, "window_size": 256}],
    [{"stride": 128, "window_size": 64}, {"stride": 256, "window_size": -1}],
    [{"stride": 64, "window_size": 256}],
    [{"stride": 1, "window_size": 64}],
]


def slow_old_rows(levels, seq_len: int, block_size: int, causal: bool) -> list[list[int]]:
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
    active = active or {(row, row) for row in range(n)}
    return [[col for col in range(row + 1 if causal else n) if (row, col) in active] for row in range(n)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("levels", [*LEVELS.values(), *ODD_LEVELS])
@pytest.mark.parametrize(("seq_len", "block_size"), [(1024, 64), (4096, 64), (5000, 128), (2048, 32)])
def test_old_rows(levels, seq_len: int, block_size: int, causal: bool) -> None:
    expected = slow_old_rows(levels, seq_len, block_size, causal)
    rows = old_rows(levels_of(levels), seq_len // block_size, block_size, causal)
    assert list(map(list, rows)) == expected
    assert old_blocks(levels, seq_len, block_size, causal) == sum(map(len, expected))


def test_figures_of_the_removal_notice() -> None:
    assert old_blocks(LEVELS["standard"], 16_384) == 5858
    assert old_blocks(LEVELS["long_range"], 16_384) == 65_536
    assert new_blocks(0.01, 16_384) == 655


@pytest.mark.parametrize(
    ("seq_len", "causal", "old", "new"),
    [
        (4_096, False, (686, 4_032, 5), (128, 512, 63)),
        (4_096, True, (347, 3_072, 5), (189, 512, 12)),
        (16_384, False, (5_858, 16_320, 5), (655, 512, 110)),
        (16_384, True, (2_939, 15_360, 5), (765, 512, 36)),
        (65_536, False, (72_626, 65_472, 5), (10_485, 1_536, 102)),
        (65_536, True, (36_347, 64_512, 5), (5_248, 2_048, 101)),
    ],
)
def test_figures_of_the_defaults(
    seq_len: int, causal: bool, old: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    for found, expected in (
        (old_figures(STANDARD, seq_len, 64, causal), old),
        (new_figures(0.01, (1, 2, 4, 8), seq_len, 64, causal), new),
    ):
        assert found is not None
        assert (found.blocks, found.reach, found.layers) == expected
        assert (found.full_coverage, found.more_layers) == (True, False)


def layout_figures(layout) -> tuple[int, float, int, int | None]:
    """Blocks, density, reach and layers of a layout of the package."""
    reach = max(abs(row - col) for row, cols in enumerate(layout.rows()) for col in cols) * layout.block_size
    return layout.num_active_blocks, layout.density, reach, layout.hops_to_full_coverage()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("levels", [*LEVELS.values(), *ODD_LEVELS])
def test_old_figures_are_those_of_the_package(levels, causal: bool) -> None:
    package = pytest.importorskip("dilated_attention_pytorch")
    torch = pytest.importorskip("torch")
    for seq_len, block_size in ((3072, 64), (2048, 128), (64, 64)):
        rows = slow_old_rows(levels, seq_len, block_size, causal)
        mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
        for row, columns in enumerate(rows):
            mask[row, columns] = True
        layout = package.BlockLayout.from_dense(
            mask, block_size, q_len=seq_len, kv_len=seq_len, causal=causal
        )
        found = old_figures(levels_of(levels), seq_len, block_size, causal)
        assert found is not None
        expected = layout_figures(layout)
        assert (found.blocks, pytest.approx(found.density), found.reach, found.layers) == expected
        assert found.full_coverage == (expected[-1] is not None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rates", [(1, 2, 4, 8), (1,), (3, 5)])
def test_new_figures_are_those_of_the_package(rates: tuple[int, ...], causal: bool) -> None:
    package = pytest.importorskip("dilated_attention_pytorch")
    for ratio in (0.01, 0.05, 0.29, 1.0):
        for seq_len, block_size in ((64, 64), (1000, 16), (5000, 64), (16_384, 128)):
            config = package.SparsePatternConfig(
                sparsity_ratio=ratio, dilation_rates=rates, block_size=block_size
            )
            layout = package.BlockLayout.from_config(config, seq_len, causal=causal)
            found = new_figures(ratio, rates, seq_len, block_size, causal)
            expected = layout_figures(layout)
            assert (found.blocks, pytest.approx(found.density), found.reach, found.layers) == expected
            assert new_blocks(ratio, seq_len, block_size, causal) == expected[0]


def test_never_and_always() -> None:
    assert layers_to_full_coverage([range(4)] * 4, False) == (1, True)
    assert layers_to_full_coverage([range(row + 1) for row in range(4)], True) == (1, True)
    assert layers_to_full_coverage([range(row, row + 1) for row in range(4)], False) == (None, True)
    assert layers_to_full_coverage([range(4), range(0)], False) == (None, True)
    alone = old_figures(((64, 64),), 1024, 64)
    assert alone is not None
    assert str(alone) == "16 blocks (6.2 %), reach 0 tokens, never full coverage"


def test_layers_that_are_not_followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [range(max(0, row - 1), min(100, row + 2)) for row in range(100)]
    assert layers_to_full_coverage(rows, False) == (99, True)
    monkeypatch.setattr(density, "MOST_STEPS", 9_000)
    layers, followed = layers_to_full_coverage(rows, False)
    assert layers is not None
    assert 1 < layers < 99
    assert not followed
    assert str(Figures(6400, 298, 0.0298, 64, None, layers, True)).endswith(
        f"more than {layers} layers to full coverage"
    )


def comparison(**changes) -> Comparison:
    values = {
        "name": "default",
        "levels": STANDARD,
        "old_block_size": 64,
        "ratio": 0.01,
        "rates": (1, 2, 4, 8),
        "block_size": 64,
    }
    return Comparison(**{**values, **changes})


def test_long_sequences_are_not_followed() -> None:
    found = comparison().line(2**20, True)
    bound = "reach and layers not computed above 2,048 blocks a side"
    assert found == (
        f"at 1,048,576 tokens, causal: 8,445,947 blocks (6.3 %), {bound} -> 1,342,259 blocks (1.0 %), {bound}"
    )
    longest = comparison().line(2**31 - 64, False)
    assert "not causal: not computed above 262,144 blocks a side -> " in longest


@pytest.mark.parametrize("seq_len", [2**17, 2**24, 2**31 - 64])
def test_no_length_takes_long(seq_len: int) -> None:
    slow = comparison(levels=((64, 256),), ratio=0.0001, rates=(1,))
    begin = time.process_time()
    slow.as_dict(seq_len)
    assert time.process_time() - begin < 15  # a second or two on a free machine


def test_a_block_longer_than_the_sequence() -> None:
    found = comparison(old_block_size=512, block_size=256)
    assert found.summary(300) == "default -> 100.0 %"
    assert found.line(300, False) == (
        "at 300 tokens, not causal: nothing, a block has 512 tokens -> 4 blocks (100.0 %), reach 256 tokens, "
        "1 layer to full coverage"
    )
    assert found.as_dict(300)["causal"]["before"] is None


def test_each_side_has_its_own_block_size() -> None:
    found = comparison(old_block_size=512, block_size=256)
    before, after = found.before(16_384, False), found.after(16_384, False)
    assert before is not None
    assert before.density == old_blocks(LEVELS["standard"], 16_384, 512) / 32**2
    assert after.density == new_blocks(0.01, 16_384, 256) / 64**2
    assert found.summary(16_384).endswith("x fewer pairs of tokens")


def test_the_removed_pattern_took_multiples_of_its_blocks() -> None:
    line = comparison().line(5_000, False)
    assert (
        "4 layers to full coverage (at 4,992 tokens, a multiple of its blocks) -> 158 blocks (2.5 %)" in line
    )


@pytest.mark.parametrize(
    ("levels", "ratio", "change"),
    [
        (STANDARD, 0.01, "8.9 % -> 1.0 %: 8.9x fewer blocks"),
        (((64, 64),), 0.01, "0.39 % -> 1.0 %: 2.6x more blocks"),
        (((1, -1),), 1.0, "100.0 % -> 100.0 %: as many blocks"),
    ],
)
def test_summary(levels, ratio: float, change: str) -> None:
    assert comparison(levels=levels, ratio=ratio).summary(16_384) == f"default {change}"


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("causal", [False, True])
def test_the_warning_says_when_the_floor_decides(ratio: float, causal: bool, block_size: int) -> None:
    found = comparison(ratio=ratio, block_size=block_size)
    least = 3 if causal else 2
    for n_blocks in (1, 2, 3, 5, 20, 66, 67, 199, 200, 201, 598, 599, 600, 1999, 2000, 2001):
        seq_len = n_blocks * block_size
        pairs = n_blocks * (n_blocks + 1) // 2 if causal else n_blocks**2
        floor = sum(min(least, row + 1 if causal else n_blocks) for row in range(n_blocks))
        paid = round(ratio * 1000) * pairs // 1000
        warning = found.warning(seq_len, causal)
        assert (warning is not None) == (floor > paid)
        if warning is not None:
            assert f"floor of {least} blocks per row decides" in warning
            assert f"{floor:,} blocks ({percent(floor / pairs)}), not the {paid:,} of" in warning
            first = found.ratio_decides_from(seq_len, causal)
            assert first > seq_len
            assert not found.floor_decides(first, causal)
            assert found.floor_decides(first - 1, causal)


def test_percentages() -> None:
    shares = (1.0, 0.9999, 0.0894, 0.005, 0.00005)
    assert [percent(share) for share in shares] == ["100.0 %", "99.9 %", "8.9 %", "0.5 %", "0.005 %"]
    ratios = (1.0, 1, 0.1, 0.05, 0.29, 0.0125, 1e-7)
    assert list(map(exact_percent, ratios)) == ["100", "100", "10", "5", "29", "1.25", "0.00001"]


@pytest.mark.parametrize("page", ["tools/migrate-hierarchical/README.md", "docs/migrate.md"])
def test_pages_show_the_report_of_the_default(page: str) -> None:
    text = (FIXTURES.parents[2] / page).read_text("utf-8")
    shown = [line.strip() for line in text.splitlines() if line.strip().startswith("at 16,384 tokens")]
    assert shown == comparison().lines(16_384)[: len(shown)]
    assert len(shown) >= 2
