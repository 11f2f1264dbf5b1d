"""SparsePatternConfig and TokenDilation: fields, defaults, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.config import TokenDilation

REMOVED = (
    "Hierarchical variant has been removed due to poor memory efficiency. Use 'base' variant with "
    "pattern_type='dilated_sparse' and sparsity_ratio=0.01-0.05 (95-99% sparse) for better multi-scale coverage."
)


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
        ({"pattern_type": "local_window", "window_size": 0}, "window_size must be .*got 0"),
        ({"pattern_type": "local_window", "window_size": 1.5}, "window_size must be .*got 1.5"),
        ({"global_tokens": -1}, "global_tokens must be .*got -1"),
        ({"pattern_type": "global_local", "global_tokens": 1.0}, "global_tokens must be .*got 1.0"),
        ({"dilation_rates": []}, r"dilation_rates must be .*got \(\)"),
        ({"dilation_rates": [1, 0]}, r"dilation_rates must be .*got \(1, 0\)"),
        ({"dilation_rates": [1.5]}, r"dilation_rates must be .*got \(1.5,\)"),
    ],
)
def test_config_errors_name_argument_and_value(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
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
    with pytest.raises((TypeError, ValueError), match=message):
        TokenDilation.from_user(segment_lengths, dilation_rates, 64)
