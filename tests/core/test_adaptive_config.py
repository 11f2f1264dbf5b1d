"""AdaptiveConfig: upstream's fields and defaults, and what is refused."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from fractions import Fraction

import pytest

from dilated_attention_pytorch import AdaptiveConfig


def test_fields_and_defaults_are_those_of_upstream_and_two_more() -> None:
    assert {field.name: field.default for field in dataclasses.fields(AdaptiveConfig)} == {
        "base_sparsity": 0.9,
        "temperature": 1.0,
        "learnable_temperature": True,
        "min_temperature": 0.1,
        "hidden_dim": 128,
        "num_layers": 2,
        "share_across_heads": False,
        "sparsity_reg_weight": 0.01,
        "hard_sparsity": False,
        "top_p": None,
        "gumbel_noise": True,
    }


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [(0.9, Fraction(1, 10)), (0.71, Fraction(29, 100)), (0, Fraction(1)), (Decimal("0.99"), Fraction(1, 100)), (Fraction(2, 3), Fraction(1, 3))],
)  # fmt: skip
def test_fraction_dropped_is_read_as_it_is_written(dropped: float, kept: Fraction) -> None:
    config = AdaptiveConfig(dropped)
    assert config.sparsity_ratio == kept
    assert dataclasses.replace(config, temperature=0.5).sparsity_ratio == kept


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base_sparsity": 1}, ValueError, "base_sparsity must be the fraction of blocks dropped.* got 1; 0.9 keeps 10 %"),
        ({"base_sparsity": -0.1}, ValueError, "base_sparsity must be .* got -0.1"),
        ({"base_sparsity": "most"}, TypeError, "base_sparsity must be .* got 'most'"),
        ({"temperature": 0.0}, ValueError, "temperature must be a positive number, got 0.0"),
        ({"temperature": 0.05}, ValueError, "temperature must be at least min_temperature 0.1, got 0.05"),
        ({"min_temperature": float("inf")}, ValueError, "min_temperature must be a positive number, got inf"),
        ({"hidden_dim": 0}, ValueError, "hidden_dim must be a number of at least 1, got 0"),
        ({"num_layers": 1.5}, TypeError, "num_layers must be a number of at least 1, got 1.5"),
        ({"learnable_temperature": "no"}, TypeError, "learnable_temperature must be True or False, got 'no'"),
        ({"hard_sparsity": 2}, TypeError, "hard_sparsity must be True or False, got 2"),
        ({"sparsity_reg_weight": -1}, ValueError, "sparsity_reg_weight must be finite and not negative, got -1"),
        ({"top_p": 0}, ValueError, "top_p must be over 0 and at most 1, got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_field(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaptiveConfig(**arguments)
