"""Patterns and lengths that the tests of patterns and layouts share."""

from __future__ import annotations

import itertools

from hypothesis import settings

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.layout import BlockLists
from tests.core.slow_definition import Pattern

# The same examples on every run, and no deadline: a busy machine must not fail a test.
settings.register_profile("core", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")

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


def layout_of(pattern: Pattern, q_len: int, kv_len: int | None = None, causal: bool = False) -> BlockLayout:
    return BlockLayout.from_config(config_of(pattern), q_len, kv_len, causal)


def listed(lists: BlockLists) -> list[list[int]]:
    """The indices of every list."""
    offsets, indices = lists.indptr.tolist(), lists.indices.tolist()
    return [indices[a:b] for a, b in itertools.pairwise(offsets)]
