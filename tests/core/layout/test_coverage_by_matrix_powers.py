"""Coverage and hops compared with powers of the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilated_attention_pytorch import BlockLayout
from tests.core.pattern_cases import layout_of, pattern_id
from tests.core.slow_definition import Pattern, pattern_rows, reachable

# min_blocks=1 is warned of
pytestmark = pytest.mark.filterwarnings("ignore:with sparsity_ratio")


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
    with pytest.raises(ValueError, match="layers must be a number of at least 1, got 0"):
        layout_of(Pattern("local_window"), 64).coverage(0)
    with pytest.raises(ValueError, match="q_len 64 and kv_len 128 differ"):
        layout_of(Pattern("local_window"), 64, 128).coverage(2)
