"""Blocks of 64 where heads share k, v and lists: tiles are a row of two heads, in place of two rows of one head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper import passes, tuning
from dilated_attention_pytorch.functional import make_problem
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.test_emulated_kernels import over_the_limit, problem_of

LENGTH = 330
PADDING = torch.zeros(2, LENGTH, dtype=torch.bool)
PADDING[0, 200:], PADDING[1, :70] = True, True
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.fixture(autouse=True)
def _few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are paired for any number of keys."""
    monkeypatch.setattr(tuning, "PAIRED_FROM", 0)


# ---- which calls


def heads(num_heads: int, kv_heads: int, layout_heads: int, block: int = 64, **options: Any) -> bool:
    """Whether heads are paired in a call."""
    mask = torch.ones(layout_heads, 4, 4, dtype=torch.bool)
    layout = BlockLayout.from_dense(mask, block)
    q, k = (torch.empty(1, 4 * block, n, 64, dtype=torch.bfloat16) for n in (num_heads, kv_heads))
    return passes.pairs_heads(make_problem(q, k, k, layout, **options))


def test_heads_are_paired_where_they_share_keys_and_lists() -> None:
    assert heads(4, 2, 1)
    assert heads(4, 2, 2)
    assert heads(4, 1, 1)
    assert heads(6, 3, 3)


def test_heads_that_share_too_little_are_not_paired() -> None:
    assert not heads(4, 4, 1)  # no keys
    assert not heads(4, 2, 4)  # no lists
    assert not heads(6, 2, 2)  # three would be left over
    assert not heads(4, 2, 2, block=128)  # a row is a tile
    assert not heads(4, 2, 2, kv_lengths=torch.tensor([200]))
    assert not heads(4, 2, 2, alibi_slopes=torch.ones(4))  # which takes the nearest blocks first


def test_few_keys_are_not_worth_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "PAIRED_FROM", 257)
    assert not heads(4, 2, 1)


# ---- results


@pytest.mark.parametrize(("head_dim", "is_causal"), [(64, True), (128, False)])
def test_results_are_those_of_the_definition(head_dim: int, is_causal: bool) -> None:
    problem = problem_of(
        head_dim, 64, is_causal, q_len=LENGTH, heads=4, kv_heads=2, layout_heads=2, empty=(1,)
    )
    assert passes.pairs_heads(problem)
    assert over_the_limit(emulator.errors(problem, lse_gradient=True, through_launch=True)) == {}


def test_whole_blocks_before_the_first_query() -> None:
    problem = problem_of(64, 64, True, q_len=100, kv_len=292, heads=4, kv_heads=2, density=0.8)
    assert passes.pairs_heads(problem)
    assert over_the_limit(emulator.errors(problem, programs=3)) == {}


def test_softcap_sinks_padding_and_dropout() -> None:
    torch.manual_seed(0)
    problem = problem_of(
        64,
        64,
        True,
        q_len=LENGTH,
        heads=4,
        kv_heads=2,
        batch=2,
        softcap=3.0,
        sinks=SINKS,
        key_padding_mask=PADDING,
        dropout_p=0.2,
    )
    assert passes.pairs_heads(problem)
    found = emulator.errors(problem, through_launch=True)
    found.pop("grad_sinks")  # a sum over all queries, which cancels
    assert over_the_limit(found) == {}
