"""Every name that a config takes has one pattern, whose file bears the name."""

from __future__ import annotations

import sys

import pytest

from dilated_attention_pytorch.config import PATTERN_TYPES, TAKEN_BY
from dilated_attention_pytorch.patterns.registry import PATTERNS


def test_every_pattern_type_is_registered_once() -> None:
    assert sorted(PATTERNS) == sorted(PATTERN_TYPES)


@pytest.mark.parametrize("name", PATTERN_TYPES)
def test_file_of_a_pattern_begins_with_its_name(name: str) -> None:
    module = sys.modules[PATTERNS[name].pairs.__module__]
    assert module.__name__.rpartition(".")[2] == name
    assert (module.__doc__ or "").startswith(f"{name}: ")


@pytest.mark.parametrize("field", TAKEN_BY)
def test_fields_belong_to_patterns_that_exist(field: str) -> None:
    assert set(TAKEN_BY[field]) <= set(PATTERN_TYPES)
