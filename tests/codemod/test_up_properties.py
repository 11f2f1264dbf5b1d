"""Any call of 0.2.0, laid out in any way: after the migration the same arguments arrive, other than those that go."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from itertools import takewhile
from types import ModuleType
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.upstream.old_api import OLD_PARAMETERS
from tests.codemod.test_fixtures import comments
from tests.codemod.test_up_fixtures import SETTINGS

BASE, FACTORY = "BlockSparseRingDilatedAttention", "create_block_sparse_attention"
PRESET, PATTERN = "get_block_sparse_preset", "SparsePatternConfig"
# The signatures now.
NEW = {
    "BlockSparseAttention": ("sparse_config", "segment_lengths", "dilation_rates", "dropout"),
    FACTORY: (
        "variant", "segment_lengths", "dilation_rates", "sparse_config", "sparsity_ratio", "block_size",
        "adaptive_config", "embed_dim", "num_heads",
    ),
    PRESET: ("name",),
    PATTERN: ("pattern_type", "block_size", "sparsity_ratio", "window_size", "global_tokens", "dilation_rates"),
}  # fmt: skip
VALUES: dict[str, list[str]] = {
    "segment_lengths": ["[2048, 4096]", "segments", "(2048,)"],
    "dilation_rates": ["[1, 2]", "[1]", "(1, 1)", "[2 ** i for i in range(2)]"],
    "sparse_config": ["pattern", "{'pattern_type': 'dilated_sparse'}", "None"],
    "sparsity_ratio": ["0.1", "ratio"],
    "block_size": ["64", "size"],
    "variant": ["'base'", '"auto"'],
    "preset_name": ["'local'", "preset"],
    "pattern_type": ["'local_window'", '"dilated_sparse"'],
    "window_size": ["512"],
    "global_tokens": ["0", "2"],
    "dropout": ["0.1", "lambda: 1"],
    "device": ["'cpu'"],
    "enable_memory_pool": ["True", "flag"],
    "ring_size": ["1", "len(segments)"],
    "enable_batched_ops": ["False"],
    "pattern_cache_size": ["100"],
}
KEYWORDS = {
    BASE: ["sparsity_ratio", "dropout", "device", "enable_memory_pool", "ring_size"],
    FACTORY: ["dropout", "device", "enable_memory_pool", "ring_size"],
    PRESET: [
        "sparsity_ratio",
        "segment_lengths",
        "dilation_rates",
        "dropout",
        "enable_memory_pool",
        "ring_size",
    ],
    PATTERN: [],
}
NAMES = {"segments": [9], "pattern": "pattern", "ratio": 0.3, "size": 32, "preset": "dilated", "flag": True}
GONE = {"enable_memory_pool", "ring_size", "enable_batched_ops", "pattern_cache_size"}
WINDOW = {"pattern_type": "local_window", "window_size": 256}
LAYOUTS = {
    "one line": ("", ", ", ""),
    "spaces": (" ", " , ", " "),
    "lines": ("\n    ", ",\n    ", ",\n"),
    "lines, no comma": ("\n    ", ",\n    ", "\n"),
    "comments": ("  # begins\n    ", ",  # between\n    ", ",  # ends\n"),
    "comments, no comma": ("\n    ", ",  # between\n    # below\n    ", "  # ends\n"),
    "aligned": ("", ",\n          ", ""),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, str], str]:
    """A function, its arguments by old parameter, and the call."""
    name = draw(st.sampled_from([BASE, FACTORY, PRESET, PATTERN]))
    parameters = [each for each in OLD_PARAMETERS[name] if each in VALUES]
    required = {BASE: 2, PRESET: 1}.get(name, 0)
    in_order = list(takewhile(VALUES.__contains__, OLD_PARAMETERS[name]))
    known = in_order[: draw(st.integers(0, len(in_order)))]
    rest = [each for each in [*parameters, *KEYWORDS[name]] if each not in known]
    more = draw(st.lists(st.sampled_from(rest), unique=True)) if rest else []
    missing = [each for each in parameters[:required] if each not in (*known, *more)]
    named = draw(st.permutations([*missing, *more]))
    given_ = {each: draw(st.sampled_from(VALUES[each])) for each in (*known, *named)}
    parts = [given_[each] for each in known] + [f"{each}={given_[each]}" for each in named]
    begin, between, end = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))]
    return name, given_, f"{name}({begin}{between.join(parts)}{end})" if parts else f"{name}()"


def recorder(name: str) -> Callable[..., dict[str, Any]]:
    return lambda *args, **kwargs: {**dict(zip(NEW[name], args)), **kwargs}


def value_of(code: str) -> Any:
    return code if code.startswith("lambda") else eval(code, dict(NAMES))


def expected(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    """What arrives in the new package."""
    values = {each: value_of(code) for each, code in arguments.items() if each not in GONE}
    if name == PATTERN:
        values.setdefault("pattern_type", "local_window")
        if values["pattern_type"] == "local_window":
            values.setdefault("window_size", 256)
            values.pop("dilation_rates", None)
            values.pop("global_tokens", None)
        else:
            values.pop("window_size", None)
            values.pop("global_tokens", None)
        return values
    if name == BASE or set(values.get("dilation_rates", [0])) != {1}:
        values.pop("segment_lengths", None)
        values.pop("dilation_rates", None)
    if name == PRESET:
        values["name"] = values.pop("preset_name")
    elif values.get("sparse_config") is None and "sparsity_ratio" not in values:
        values["sparse_config"] = WINDOW
        if "block_size" in values:
            values["sparse_config"] = {**WINDOW, "block_size": values.pop("block_size")}
    return values


@settings(max_examples=150, deadline=None)
@given(calls())
def test_the_same_arguments_arrive(call: tuple[str, dict[str, str], str]) -> None:
    name, arguments, code = call
    source = f"from dilated_attention_pytorch import {name}\nresult = {code}\n"
    result = migrate_bytes("x.py", source.encode(), SETTINGS)
    assert result.error is None
    new = (result.new or source.encode()).decode()
    ast.parse(new)
    assert comments(source) == comments(new)
    again = migrate_bytes("x.py", new.encode(), SETTINGS)
    assert again.new is None
    package = ModuleType("dilated_attention_pytorch")
    for each in NEW:
        setattr(package, each, recorder(each))
    namespace: dict[str, Any] = dict(NAMES)
    with patch.dict(sys.modules, {"dilated_attention_pytorch": package}):
        exec(new, namespace)
    arrived = {
        each: arguments[each] if callable(value) else value for each, value in namespace["result"].items()
    }
    assert arrived == expected(name, arguments)
