"""Patterns as JSON: in files of layouts, and as constants of compiled graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

from ..config import SparsePatternConfig, config_of_saved


def configs_as_text(configs: Sequence[SparsePatternConfig]) -> str:
    """The fields of configs as JSON."""
    return f"[{', '.join([config._as_text() for config in configs])}]"


def configs_of_text(text: str) -> list[SparsePatternConfig]:
    """The inverse of `configs_as_text`."""
    made = []
    for fields in json.loads(text):
        ratio = fields["sparsity_ratio"]
        if isinstance(ratio, list):
            fields["sparsity_ratio"] = Fraction(*ratio)
        made.append(config_of_saved(fields))
    return made
