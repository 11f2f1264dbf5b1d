"""Keywords of other libraries' attention: every call says what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dilated_attention_pytorch as package
from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    SparsePatternConfig,
    block_sparse_attention,
)
from dilated_attention_pytorch.upstream.neighbours import OF_ALL, OF_ONE

X = torch.randn(1, 128, 2, 16)
LAYOUT = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.5), 128)
MODULES: dict[str, type[torch.nn.Module]] = {
    f"{each.__name__}.forward": each
    for each in (BlockSparseAttention, BlockSparseAdaptive, BlockSparseDistributedAttention)
}
# the keywords are looked at before the arguments, so that these need not be right
CALLS: dict[str, Callable[..., Any]] = {
    "block_sparse_attention": package.block_sparse_attention,
    "explain_backends": package.explain_backends,
    "block_sparse_attention_varlen": package.block_sparse_attention_varlen,
    "explain_backends_varlen": package.explain_backends_varlen,
    "block_sparse_decode": package.block_sparse_decode,
    "block_sparse_sdpa": package.block_sparse_sdpa,
    "distributed_block_sparse_attention": package.distributed_block_sparse_attention,
    "distributed_block_sparse_attention_varlen": package.distributed_block_sparse_attention_varlen,
    **{name: each.forward for name, each in MODULES.items()},
}


def parameters_of(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(call).parameters)


def required(call: Callable[..., Any]) -> list[None]:
    of_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    each = parameters_of(call).values()
    return [None for p in each if p.kind in of_position and p.default is inspect.Parameter.empty]


def known(name: str) -> dict[str, str]:
    """The keywords that the call does not take."""
    taken = parameters_of(CALLS[name])
    return {
        keyword: what for keyword, what in {**OF_ALL, **OF_ONE.get(name, {})}.items() if keyword not in taken
    }


@pytest.mark.parametrize("name", CALLS)
def test_keyword_of_a_neighbour_says_what_to_write(name: str) -> None:
    call = CALLS[name]
    for keyword, what in known(name).items():
        with pytest.raises(TypeError) as error:
            call(*required(call), **{keyword: 1})
        assert str(error.value) == f"{name} takes no {keyword!r}:\n  {keyword}: {what}"


@pytest.mark.parametrize("name", CALLS)
def test_what_to_write_is_an_argument_that_there_is(name: str) -> None:
    for keyword, what in known(name).items():
        of_module = re.fullmatch(r"use (\w+)\b.* of the module", what)
        if of_module is not None:
            assert of_module[1] in parameters_of(MODULES[name].__init__), keyword
            continue
        of_call = re.match(r"use (\w+)\b(?! layout of)", what)
        if of_call is not None and not of_call[1].startswith(("Block", "block_sparse", "a")):
            assert of_call[1] in parameters_of(CALLS[name]), keyword


def test_every_own_table_is_of_a_call() -> None:
    assert set(OF_ONE) <= set(CALLS)


def test_all_keywords_of_a_call_are_named_at_once() -> None:
    with pytest.raises(
        TypeError, match=r"takes no 'causal', 'scale':\n  causal: use is_causal\n  scale: use softmax"
    ):
        block_sparse_attention(X, X, X, LAYOUT, causal=True, scale=1.0)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", CALLS)
def test_other_unknown_keywords_are_ordinary_errors(name: str) -> None:
    call = CALLS[name]
    with pytest.raises(
        TypeError, match=rf"^{re.escape(name)}\(\) got an unexpected keyword argument 'nothing'$"
    ):
        call(*required(call), nothing=1)


def test_compiled_call_refuses_them_too() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return block_sparse_attention(x, x, x, LAYOUT, causal=True)  # type: ignore[call-overload,no-any-return]

    with pytest.raises(Exception, match="use is_causal"):
        torch.compile(call, backend="eager")(X)
