"""Settings that are allowed but often not what was meant: what the warnings say, where they point, how to silence them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseAttention,
    SparsePatternConfig,
    SparsityRatioWarning,
    UnusedFieldWarning,
    block_sparse_attention,
    create_block_sparse_attention,
    explain_backends,
    get_block_sparse_preset,
)
from dilated_attention_pytorch.config import PATTERN_TYPES, TAKEN_BY

SAMPLES: dict[str, Any] = {"window_size": 256, "global_tokens": 64, "dilation_rates": [1, 2], "rotation": 3}


def warned(make: Any, category: type[Warning] = UserWarning) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    assert all(issubclass(warning.category, category) for warning in caught)
    return caught


# ---- fields that the pattern does not take


@pytest.mark.parametrize("pattern", PATTERN_TYPES)
@pytest.mark.parametrize("field", SAMPLES)
def test_field_that_a_pattern_does_not_take_is_dropped_with_a_warning(pattern: Any, field: str) -> None:
    fields = {field: SAMPLES[field]}
    if pattern in TAKEN_BY[field]:
        assert not warned(lambda: SparsePatternConfig(pattern, **fields))
        assert SparsePatternConfig(pattern, **fields) != SparsePatternConfig(pattern)
        return
    with pytest.warns(UnusedFieldWarning) as caught:
        config = SparsePatternConfig(pattern, **fields)
    assert config == SparsePatternConfig(pattern)
    assert hash(config) == hash(SparsePatternConfig(pattern))
    assert str(caught[0].message).startswith(
        f"{field}={SAMPLES[field]} has no effect with pattern_type={pattern!r}; leave it out ({field} is for "
    )


def test_config_builder_that_fills_in_all_fields_of_upstream_gets_one_warning() -> None:
    fields = {
        "block_size": 64,
        "sparsity_ratio": 0.1,
        "window_size": 256,
        "global_tokens": 1,
        "dilation_rates": None,
    }
    (warning,) = warned(
        lambda: SparsePatternConfig(pattern_type="dilated_sparse", **fields), UnusedFieldWarning
    )
    assert str(warning.message) == (
        "window_size=256 and global_tokens=1 have no effect with pattern_type='dilated_sparse'; leave them out "
        "(window_size is for 'local_window' or 'global_local', global_tokens is for 'global_local'). To silence this: "
        "warnings.filterwarnings('ignore', category=dilated_attention_pytorch.UnusedFieldWarning)"
    )


@pytest.mark.parametrize("pattern", PATTERN_TYPES)
def test_fields_filled_in_with_nothing_are_no_reason_to_warn(pattern: Any) -> None:
    empty: dict[str, Any] = {"window_size": 0, "global_tokens": None, "dilation_rates": []}
    unused = {field: value for field, value in empty.items() if pattern not in TAKEN_BY[field]}
    assert not warned(lambda: SparsePatternConfig(pattern, **unused))
    assert SparsePatternConfig(pattern, **unused) == SparsePatternConfig(pattern)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_size": -1}, "window_size must be a positive number of tokens, got -1"),
        ({"window_size": "wide"}, "window_size must be a positive number of tokens, got 'wide'"),
        ({"global_tokens": 1.5}, "global_tokens must be a number of tokens >= 0, got 1.5"),
        ({"pattern_type": "local_window", "dilation_rates": [0]}, r"dilation_rates must be .*got \(0,\)"),
        (
            {"pattern_type": "local_window", "rotation": -1},
            "rotation must be a number of offsets >= 0, got -1",
        ),
    ],
)
def test_field_that_has_no_effect_is_still_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SparsePatternConfig(**fields)


def test_least_of_a_row_is_kept_beside_a_window_that_has_no_effect() -> None:
    with pytest.warns(UnusedFieldWarning):
        assert SparsePatternConfig(window_size=256, min_blocks=4).min_blocks == 4


def test_ratio_beside_a_window_belongs_to_the_same_kind() -> None:
    config = SparsePatternConfig("local_window", window_size=256)
    (warning,) = warned(lambda: create_block_sparse_attention(sparse_config=config, sparsity_ratio=0.2))
    assert warning.category is UnusedFieldWarning


# ---- the fraction kept


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.5, "sparsity_ratio 0.5 keeps 50 % of the blocks: it is the fraction kept, not the fraction dropped. To"),
        (0.9, "sparsity_ratio 0.9 keeps 90 % of the blocks: it is the fraction kept, not the fraction dropped; for 90 % sparse use 0.1. To"),
        (0.95, "sparsity_ratio 0.95 keeps 95 % of the blocks: it is the fraction kept, not the fraction dropped; for 95 % sparse use 0.05. To"),
        (0.999, "sparsity_ratio 0.999 keeps 99.9 % of the blocks: it is the fraction kept, not the fraction dropped; for 99.9 % sparse use 0.001. To"),
        (Fraction(2, 3), "sparsity_ratio 2/3 keeps 66.6667 % of the blocks: it is the fraction kept, not the fraction dropped; for 66.6667 % sparse use 0.333333. To"),
    ],
)  # fmt: skip
def test_high_ratio_says_that_it_is_the_fraction_kept(ratio: Any, message: str) -> None:
    (warning,) = warned(lambda: SparsePatternConfig(sparsity_ratio=ratio), SparsityRatioWarning)
    silence = "warnings.filterwarnings('ignore', category=dilated_attention_pytorch.SparsityRatioWarning)"
    assert str(warning.message).startswith(message)
    assert str(warning.message).endswith(f"To silence this: {silence}")


@pytest.mark.parametrize("ratio", [0.01, 0.4999, 1, 1.0])
def test_low_ratio_and_dense_are_no_reason_to_warn(ratio: float) -> None:
    assert not warned(lambda: create_block_sparse_attention(sparsity_ratio=ratio))


def test_ratio_that_a_window_replaces_is_no_reason_to_warn() -> None:
    assert not warned(lambda: SparsePatternConfig("local_window", window_size=256, sparsity_ratio=0.95))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparsePatternConfig(sparsity_ratio=0.9),
        lambda: BlockSparseAttention({"sparsity_ratio": 0.9}),
        lambda: BlockSparseAttention(sparsity_ratio=0.9),
        lambda: create_block_sparse_attention(sparse_config={"sparsity_ratio": 0.9}),
        lambda: create_block_sparse_attention(sparsity_ratio=0.9),
        lambda: get_block_sparse_preset("dilated", sparsity_ratio=0.9),
        lambda: BlockLayout.from_config({"sparsity_ratio": 0.9}, 128),  # type: ignore[arg-type]
        lambda: dataclasses.replace(SparsePatternConfig(), sparsity_ratio=0.9),
    ],
    ids=["config", "dict", "class", "factory_dict", "factory", "preset", "layout", "replace"],
)
def test_warning_points_to_the_line_of_the_user_and_comes_once(make: Any) -> None:
    (warning,) = warned(make, SparsityRatioWarning)
    assert Path(warning.filename) == Path(__file__)


def test_each_kind_can_be_silenced_by_its_class() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=SparsityRatioWarning)
        config = SparsePatternConfig(sparsity_ratio=0.9)
        with pytest.raises(UnusedFieldWarning):
            SparsePatternConfig(window_size=256)
    assert config.sparsity_ratio == 0.9


def test_copies_files_and_calls_do_not_warn_again(tmp_path: Path) -> None:
    with pytest.warns(SparsityRatioWarning):
        config = SparsePatternConfig(sparsity_ratio=0.75, block_size=16)
    attention = BlockSparseAttention(config)
    q = torch.randn(1, 64, 2, 16)

    def use() -> None:
        assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
        layout = BlockLayout.from_config(config, 64)
        layout.save(tmp_path / "layout.safetensors")
        assert BlockLayout.load(tmp_path / "layout.safetensors").configs == (config,)
        attention(q, q, q)
        torch.compile(attention, backend="eager")(q, q, q)
        create_block_sparse_attention(sparse_config=config)

    assert not warned(use)


# ---- heads before tokens


HEADS_FIRST = torch.randn(1, 2, 128, 16)


class Around(torch.nn.Module):
    """A user's module that calls one of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = BlockSparseAttention(block_size=16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.attention(x, x, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: block_sparse_attention(x, x, x, BlockLayout.from_config(SparsePatternConfig(), 128)),
        lambda x: block_sparse_attention(
            x, x, x, BlockLayout.from_config(SparsePatternConfig(), 128), softcap=5.0
        ),
        lambda x: explain_backends(x, x, x, BlockLayout.from_config(SparsePatternConfig(), 128)),
        lambda x: BlockSparseAttention(block_size=16)(x, x, x),
        lambda x: BlockSparseAttention(block_size=16)(x, x, x, return_attention_weights=True),
        lambda x: BlockSparseAdaptive(block_size=16)(x, x, x),
        lambda x: torch.nn.Sequential(Around())(x),
        lambda x: torch.utils.checkpoint.checkpoint(Around(), x, use_reentrant=False),
    ],
    ids=["function", "options", "explain", "module", "weights", "adaptive", "around", "checkpoint"],
)
def test_warning_of_heads_before_tokens_points_to_the_line_of_the_user(call: Any) -> None:
    BlockSparseAttention(
        block_size=16
    ).clear_cache()  # a layout's second call like the first is not looked at
    caught = warned(lambda: call(HEADS_FIRST))
    assert caught
    for warning in caught:
        assert "is read as 2 tokens of 128 heads" in str(warning.message)
        assert Path(warning.filename) == Path(__file__)
