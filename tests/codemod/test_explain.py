"""Every comment that --explain writes is so: read back, and held against the package's layouts."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

package = pytest.importorskip("dilated_attention_pytorch")

LENGTHS = (1, 2, 3, 8, 67, 200, 600)  # in blocks
LONG = 512


def blocks(config, n_blocks: int, causal: bool):
    """The blocks that a layout keeps, as a boolean matrix."""
    return package.BlockLayout.from_config(config, n_blocks * config.block_size, causal=causal).to_dense()


def keeps_share(config, percentage: str, *least: str) -> None:
    ratio = Fraction(percentage) / 100
    for n_blocks in LENGTHS:
        for causal in (False, True):
            kept = blocks(config, n_blocks, causal).sum(-1).tolist()
            most = [row + 1 if causal else n_blocks for row in range(n_blocks)]
            floor = [min(int(least[causal]), each) for each in most]
            assert all(map(int.__ge__, kept, floor))
            assert sum(kept) == max(int(ratio * sum(most)), sum(floor))


def keeps_all(config) -> None:
    for n_blocks in LENGTHS:
        for causal in (False, True):
            layout = package.BlockLayout.from_config(config, n_blocks * config.block_size, causal=causal)
            assert layout.density == 1


def has_distances(config) -> None:
    """Every distance occurs where the sequence is long enough for it."""
    for causal in (False, True):
        kept = blocks(config, LONG, causal)
        for rate in config.dilation_rates:
            assert kept.diagonal(rate).any() or kept.diagonal(-rate).any()


def shares_distances_out(config) -> None:
    """And where rows keep too few for all of them, they do not all keep the same."""
    has_distances(config)
    signed = {sign * rate for rate in config.dilation_rates for sign in (-1, 1)}
    for causal in (False, True):
        kept = blocks(config, LONG, causal)
        inner = range(max(signed), LONG - max(signed))
        # a line of booleans per distance: whether each of the inner rows keeps the block at this distance
        distances = [
            kept.diagonal(distance)[inner.start + min(distance, 0) :][: len(inner)].tolist()
            for distance in signed
        ]
        rows = set(zip(*distances, strict=True))
        lacks = any(sum(row) < (len(signed) // 2 if causal else len(signed)) for row in rows)
        assert not lacks or len(rows) > 1


CLAIMS: dict[str, Callable[..., None]] = {
    r"# keeps ([\d.]+)% of the blocks, at least (\d) per row \(causal: (\d)\)": keeps_share,
    r"# keeps all blocks": keeps_all,
    r"# distances in blocks; sparse rows share them out": shares_distances_out,
    r"# distance in blocks": has_distances,
}


def comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def check(comment: str, config) -> None:
    for pattern, claim in CLAIMS.items():
        match = re.fullmatch(pattern, comment)
        if match is not None:
            claim(config, *match.groups())
            return
    pytest.fail(f"nothing checks {comment!r}")


def explained(source: str, **options) -> tuple[list[str], object]:
    """The comments of a migrated program, and its `config`."""
    result = migrate_bytes("x.py", source.encode(), Settings(explain=True, **options))
    assert result.new is not None
    namespace: dict[str, object] = {}
    exec(result.new, namespace)
    return comments(result.new.decode()), namespace["config"]


@settings(max_examples=20, deadline=None)
@given(
    st.one_of(st.sampled_from([1.0, 0.01, 0.05, 0.29, 1e-6]), st.floats(1e-6, 1)),
    st.lists(st.integers(1, 32), min_size=1, max_size=4),
    st.sampled_from([16, 64, 128]),
)
def test_any_comment_is_so(ratio: float, rates: list[int], block_size: int) -> None:
    source = (
        "from dilated_attention_pytorch import SparsePatternConfig\n"
        f'config = SparsePatternConfig(pattern_type="hierarchical", block_size={block_size})\n'
    )
    found, config = explained(source, sparsity_ratio=ratio, dilation_rates=tuple(rates))
    assert len(found) == 2
    for comment in found:
        check(comment, config)


def test_comment_beside_a_ratio_that_is_kept() -> None:
    source = (
        "from dilated_attention_pytorch import SparsePatternConfig\n"
        'config = SparsePatternConfig(pattern_type="hierarchical", sparsity_ratio=0.05)\n'
    )
    found, config = explained(source)
    assert found[0] == "# keeps 5% of the blocks, at least 2 per row (causal: 3)"
    for comment in found:
        check(comment, config)


def test_comments_of_the_removal_errors_are_so() -> None:
    from dilated_attention_pytorch.removed import REPLACEMENTS

    config = package.SparsePatternConfig(sparsity_ratio=0.01, dilation_rates=[1, 2, 4, 8])
    programs = {program for program in REPLACEMENTS.values() if "sparsity_ratio=0.01" in program}
    assert len(programs) == 2
    for program in programs:
        assert "dilation_rates=[1, 2, 4, 8]" in program
        found = comments(program)
        assert len(found) == 2
        for comment in found:
            check(comment, config)
