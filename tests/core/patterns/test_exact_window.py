"""Windows that are exact to the token: their pairs, a handful of masks, the same rows at every length."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_decode,
)
from dilated_attention_pytorch.layout.cache import LayoutCache, Pattern
from tests.core.layout.pairs import pairs_of

LENGTHS = [
    (200, 200, True),
    (200, 200, False),
    (200, 195, False),
    (70, 200, True),
    (1, 195, True),
    (100, 40, True),
]
WINDOWS = [1, 2, 15, 16, 17, 18, 31, 32, 33, 100, 1000]


def exact(window_size: int, block_size: int = 16) -> SparsePatternConfig:
    return SparsePatternConfig("local_window", block_size, window_size=window_size, exact=True)


def window(q_len: int, kv_len: int, causal: bool, size: int) -> Tensor:
    position = torch.arange(q_len)[:, None] + (kv_len - q_len if causal else 0)
    between = position - torch.arange(kv_len)
    return (between >= 0) & (between < size) if causal else between.abs() <= size // 2


@pytest.mark.parametrize("window_size", WINDOWS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_query_sees_the_window_and_nothing_else(lengths: tuple[int, int, bool], window_size: int) -> None:
    layout = BlockLayout.from_config(exact(window_size), *lengths)
    expected = window(*lengths, window_size)
    assert torch.equal(pairs_of(layout)[0, 0], expected)
    stats = layout.stats()
    assert stats.num_pairs == int(expected.sum())
    assert stats.num_masks <= (2 if lengths[2] else 4)
    assert stats.asked_density is None
    if lengths[0] == lengths[1]:  # no block without a pair
        asked = BlockLayout.from_mask(expected, 16, causal=lengths[2])
        assert layout.rows() == asked.rows()


@pytest.mark.parametrize("window_size", [100, 128, 4096])
def test_memory_is_linear_and_the_masks_are_as_many_at_every_length(window_size: int) -> None:
    short, long = (
        BlockLayout.from_config(exact(window_size, 64), length, causal=True).stats()
        for length in (8192, 65_536)
    )
    assert short.num_masks == long.num_masks <= 2
    # 5 numbers for a block, two for a row, and the masks
    per_row = 4 * (5 * (window_size // 64 + 2) + 2)
    assert long.num_bytes <= 1024 * per_row + 2 * 512 + 8


def test_causal_rows_and_masks_do_not_depend_on_the_length() -> None:
    long = BlockLayout.from_config(exact(50), 400, causal=True)
    assert long.block_masks is not None
    for length in (1, 40, 64, 65, 200):
        short = BlockLayout.from_config(exact(50), length, causal=True)
        assert short.block_masks is not None
        n_blocks = short.num_active_blocks
        assert short.rows() == long.rows()[: len(short.rows())]
        assert torch.equal(short.block_masks.table, long.block_masks.table)
        assert torch.equal(short.block_masks.ids, long.block_masks.ids[:n_blocks])


def test_heads_with_windows_of_their_own_share_masks() -> None:
    configs = [exact(40), SparsePatternConfig(block_size=16), exact(24), exact(40)]
    layout = BlockLayout.from_config(configs, 300, causal=True)
    alone = [BlockLayout.from_config(config, 300, causal=True) for config in configs]
    assert torch.equal(pairs_of(layout)[0], torch.cat([pairs_of(each)[0] for each in alone]))
    assert alone[0].stats().num_masks == alone[2].stats().num_masks == 2
    assert layout.stats().num_masks == 2  # 40 and 24 are the same modulo 16
    assert layout.configs == tuple(configs)


def test_pattern_and_cache_keep_the_field() -> None:
    config = exact(40)
    assert Pattern.of(config).configs() == [config]
    assert Pattern.of(config) != Pattern.of(dataclasses.replace(config, exact=False))
    cache = LayoutCache()
    device = torch.device("cpu")
    first, second = (cache.find(Pattern.of(config), length, length, True, device) for length in (200, 199))
    assert second.row_lists is first.row_lists
    assert second.block_masks is first.block_masks
    assert torch.equal(pairs_of(second)[0, 0], window(199, 199, True, 40))


def test_one_layout_serves_every_length_chunk_and_step() -> None:
    layout = BlockLayout.from_config(exact(40), 320, causal=True)
    for length in (1, 16, 100, 319):
        assert torch.equal(pairs_of(layout.prefix(length))[0, 0], window(length, length, True, 40))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 200, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    whole = block_sparse_attention(q, k, v, layout, is_causal=True)
    mask = window(200, 200, True, 40)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
    ).transpose(1, 2)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    for first, end in ((0, 7), (7, 100), (100, 101), (101, 200)):
        chunk = block_sparse_attention(q[:, first:end], k[:, :end], v[:, :end], layout, is_causal=True)
        torch.testing.assert_close(chunk, expected[:, first:end], rtol=1e-12, atol=1e-12)
    for length in (1, 40, 41, 150):
        written = torch.tensor([length], dtype=torch.int32)
        step = block_sparse_decode(q[:, length - 1 : length], k, v, layout, written)
        torch.testing.assert_close(step, expected[:, length - 1 : length], rtol=1e-12, atol=1e-12)


def test_cross_attention_has_no_exact_window() -> None:
    with pytest.raises(
        ValueError,
        match=r"as many blocks of queries as of keys, or causal=True, got q_len 100 and kv_len 200.*from_mask_mod",
    ):
        BlockLayout.from_config(exact(40), 100, 200)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        (
            {"exact": True},
            ValueError,
            "exact does not apply to pattern_type='dilated_sparse'.*'local_window'",
        ),
        (
            {"pattern_type": "local_window", "exact": True},
            ValueError,
            "exact=True needs window_size, got None",
        ),
        (
            {"pattern_type": "global_local", "window_size": 64, "exact": True},
            ValueError,
            "exact does not apply to pattern_type='global_local'.*window with global tokens.*BlockLayout.from_mask_mod",
        ),
        (
            {"pattern_type": "local_window", "window_size": 100, "dilation_rates": [2], "exact": True},
            ValueError,
            "dilation_rates does not apply to pattern_type='local_window'.*window with gaps.*BlockLayout.from_mask_mod",
        ),
        (
            {"pattern_type": "local_window", "window_size": 100, "global_tokens": 4, "exact": True},
            ValueError,
            "global_tokens does not apply to pattern_type='local_window'.*global tokens.*BlockLayout.from_mask_mod",
        ),
        ({"exact": "yes"}, TypeError, "exact must be True or False, got 'yes'"),
    ],
)
def test_configs_that_are_refused(fields: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SparsePatternConfig(**fields)
