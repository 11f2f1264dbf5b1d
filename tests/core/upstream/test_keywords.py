"""Keywords of 0.2.0 that mean nothing here: every entrance says what to do about them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import dilated_attention_pytorch as package
from dilated_attention_pytorch import (
    AdaptiveConfig,
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    BlockSparseMultiheadAttention,
    DistributedSparseConfig,
    SparsePatternConfig,
    create_adaptive_block_sparse,
    create_block_sparse_attention,
    create_multihead_block_sparse,
    get_block_sparse_preset,
)
from dilated_attention_pytorch.upstream.keywords import OF_ONE_CLASS, OLD_KEYWORDS
from dilated_attention_pytorch.upstream.names import PAGE

ROOT = Path(__file__).parents[3]

ENTRANCES: dict[str, Any] = {
    "create_block_sparse_attention": create_block_sparse_attention,
    "get_block_sparse_preset": lambda **old: get_block_sparse_preset("local", **old),
    "create_multihead_block_sparse": lambda **old: create_multihead_block_sparse(64, 2, **old),
    "create_adaptive_block_sparse": create_adaptive_block_sparse,
    "BlockSparseAttention": BlockSparseAttention,
    "BlockSparseAdaptive": BlockSparseAdaptive,
    "BlockSparseDistributedAttention": BlockSparseDistributedAttention,
    "BlockSparseMultiheadAttention": lambda **old: BlockSparseMultiheadAttention(64, 2, **old),
    "SparsePatternConfig": SparsePatternConfig,
    "AdaptiveConfig": AdaptiveConfig,
    "DistributedSparseConfig": DistributedSparseConfig,
    "sparse_config": lambda **old: BlockSparseAttention(old),
    "adaptive_config": lambda **old: BlockSparseAdaptive(adaptive_config=old),
    "distributed_config": lambda **old: BlockSparseDistributedAttention(distributed_config=old),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_old_keyword_says_what_to_do(entrance: str) -> None:
    for keyword, what in {**OLD_KEYWORDS, **OF_ONE_CLASS.get(entrance, {})}.items():
        with pytest.raises(TypeError) as error:
            ENTRANCES[entrance](**{keyword: 1})
        text = f"{entrance} takes no '{keyword}', of version 0.2.0:\n  {keyword}: {what}\n"
        assert str(error.value).startswith(text)


def test_entrances_are_all_of_upstreams_names_that_take_keywords() -> None:
    carried_over = re.findall(r"^### `(\w+)`$", (ROOT / PAGE).read_text("utf-8"), re.MULTILINE)
    new_names = {"BlockSparseAttention", "BlockSparseDistributedAttention", "BlockSparseMultiheadAttention"}
    configs = {"sparse_config", "adaptive_config", "distributed_config"}
    assert {*carried_over, *new_names, *configs} == set(ENTRANCES)


def test_keywords_of_one_class_are_of_one_that_there_is() -> None:
    assert set(OF_ONE_CLASS) <= set(ENTRANCES)
    for name, keywords in OF_ONE_CLASS.items():
        assert not set(keywords) & set(OLD_KEYWORDS), name


def test_all_old_keywords_of_a_call_are_named_at_once() -> None:
    with pytest.raises(TypeError) as error:
        create_block_sparse_attention("base", sparsity_ratio=0.01, use_memory_pool=True, mixed_precision=True)
    assert "takes no 'use_memory_pool', 'mixed_precision', of version 0.2.0" in str(error.value)


def test_no_argument_is_refused_as_an_old_one() -> None:
    made = [getattr(package, name) for name in package.__all__]
    called = [each.__init__ if isinstance(each, type) else each for each in made if callable(each)]
    called = [each for each in called if hasattr(each, "__wrapped__")]  # by explains_old_keywords
    assert len(called) > 10
    for each in called:
        assert not set(inspect.signature(each).parameters) & set(OLD_KEYWORDS), each
    for name in set(OF_ONE_CLASS) & set(package.__all__):
        assert not set(inspect.signature(getattr(package, name)).parameters) & set(OF_ONE_CLASS[name]), name


def test_other_unknown_keywords_are_ordinary_errors() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        BlockSparseAttention(nothing=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes no argument 'nothing'"):
        create_block_sparse_attention(nothing=1)


def test_signatures_and_docstrings_are_those_of_what_is_decorated() -> None:
    assert "backend" in inspect.signature(BlockSparseAttention).parameters
    assert list(inspect.signature(SparsePatternConfig).parameters) == [
        field.name for field in dataclasses.fields(SparsePatternConfig)
    ]
    assert "variant" in inspect.signature(create_block_sparse_attention).parameters
    assert create_block_sparse_attention.__name__ == "create_block_sparse_attention"
    assert (get_block_sparse_preset.__doc__ or "").startswith("Make the attention module")
