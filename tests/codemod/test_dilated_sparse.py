"""The pattern in plain integers, against the package's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_hierarchical import dilated_sparse

RATIOS = (1e-7, 0.001, 0.01, 0.0125, 0.05, 0.1, 0.29, 0.5, 0.77, 1.0)
RATES = (
    (1, 2, 4, 8),
    (1,),
    (4,),
    (3, 5),
    (8, 4, 2, 1),
    (2, 2, 3),
    (1, 100),
    (300,),
    (5, 1, 50),
    (*range(1, 40),),
)


def check(ratio: float, rates: tuple[int, ...], seq_len: int, block_size: int, causal: bool) -> None:
    package = pytest.importorskip("dilated_attention_pytorch")
    config = package.SparsePatternConfig(sparsity_ratio=ratio, dilation_rates=rates, block_size=block_size)
    assert config.least_blocks(causal) == dilated_sparse.LEAST[causal]
    layout = package.BlockLayout.from_config(config, seq_len, causal=causal)
    n_blocks = -(-seq_len // block_size)
    assert dilated_sparse.rows_of(ratio, rates, n_blocks, causal) == layout.rows()
    assert dilated_sparse.total(ratio, n_blocks, causal) == layout.num_active_blocks
    assert dilated_sparse.available(n_blocks, causal) == round(layout.num_active_blocks / layout.density)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rates", RATES)
def test_rows_are_those_of_the_package(rates: tuple[int, ...], causal: bool) -> None:
    draw = random.Random(0)
    for n_blocks in (*range(1, 20), 31, 64, 100, 129, 200, 256, 600):
        block_size = draw.choice((16, 32, 64, 128, 256))
        tokens = n_blocks * block_size - draw.randrange(block_size)
        check(draw.choice(RATIOS), rates, tokens, block_size, causal)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(1e-6, 1),
    st.lists(st.integers(1, 200), min_size=1, max_size=12),
    st.integers(1, 3000),
    st.sampled_from([16, 32, 64]),
    st.booleans(),
)
def test_any_rows_are_those_of_the_package(
    ratio: float, rates: list[int], seq_len: int, block_size: int, causal: bool
) -> None:
    check(ratio, tuple(rates), seq_len, block_size, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_totals_are_those_of_the_running_total(causal: bool) -> None:
    for n_blocks in (1, 2, 3, 4, 17, 66, 67, 200, 201, 599, 600, 1000):
        for ratio in RATIOS:
            kept = 0
            for row in range(n_blocks):
                most = row + 1 if causal else n_blocks
                share = dilated_sparse.share(ratio, n_blocks, causal, row + 1)
                kept = max(kept + min(dilated_sparse.LEAST[causal], most), share)
                assert dilated_sparse.total(ratio, n_blocks, causal, row + 1) == kept
