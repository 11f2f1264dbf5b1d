"""The CPU backend on problems drawn from all that a call may ask for: it computes the definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.backends.cpu import CPU, choice, decode, one_call_plan, single_queries, unfused
from dilated_attention_pytorch.backends.problem import AttentionProblem
from tests.core.attention_cases import LIMITS
from tests.core.backends.drawn_problems import (
    INPUTS,
    drawn_problem,
    reference_results,
    results_of,
    unseen_keys,
    with_fields,
    with_masks_of_pairs,
)

# float64 over at most 64 keys, whose scores are below 20; lse and its gradients are as exact
FLOAT64 = 1e-12


def gradients_of_results(problem: AttentionProblem, seed: int) -> tuple[Tensor, Tensor | None]:
    """Gradients of out and, for some seeds, of lse."""
    p, generator = problem, torch.Generator().manual_seed(seed)
    shape = (p.batch, p.q_len, p.num_heads, p.v_head_dim)
    grad_out = torch.randn(shape, generator=generator, dtype=torch.float64)
    grad_lse = torch.randn(p.batch, p.num_heads, p.q_len, generator=generator, dtype=torch.float64)
    return grad_out, grad_lse if seed % 3 == 0 else None


def check(problem: AttentionProblem, seed: int) -> None:
    grad_out, grad_lse = gradients_of_results(problem, seed)
    wanted = reference_results(problem, grad_out, grad_lse)
    found = results_of(CPU, problem, grad_out, grad_lse)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=FLOAT64, atol=FLOAT64, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("seed", range(100))
def test_drawn_problem_is_computed_as_defined(seed: int) -> None:
    check(drawn_problem(seed), seed)


@pytest.mark.parametrize("seed", range(200, 240))
def test_positions_of_fused_calls_are_those_of_the_definition(seed: int) -> None:
    check(drawn_problem(seed, plain_scores=True), seed)


@pytest.mark.parametrize("seed", range(300, 330))
def test_one_query_of_every_sequence_is_computed_as_defined(seed: int) -> None:
    check(drawn_problem(seed, plain_scores=True, q_len=1), seed)


@pytest.mark.parametrize("seed", range(400, 430))
def test_keys_that_no_query_sees_may_hold_anything(seed: int) -> None:
    p = drawn_problem(seed, plain_scores=seed % 2 == 0)
    grad_out, grad_lse = gradients_of_results(p, seed)
    wanted = results_of(CPU, p, grad_out, grad_lse)
    unseen = unseen_keys(p).unsqueeze(-1)
    bad = with_fields(p, k=p.k.masked_fill(unseen, math.nan), v=p.v.masked_fill(unseen, math.inf))
    found = results_of(CPU, bad, grad_out, grad_lse)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
@pytest.mark.parametrize("seed", range(500, 508))
def test_types_keep_their_limits(seed: int, dtype: torch.dtype) -> None:
    exact = drawn_problem(seed)
    rounded = {name: None if (x := getattr(exact, name)) is None else x.to(dtype) for name in INPUTS}
    if exact.attn_bias is not None:
        rounded["attn_bias"] = exact.attn_bias.to(dtype)
    p = with_fields(exact, **rounded)
    widened = with_fields(exact, **{name: None if x is None else x.double() for name, x in rounded.items()})
    grad_out, grad_lse = gradients_of_results(p, seed)
    grad_out = grad_out.to(dtype)
    wanted = reference_results(widened, grad_out.double(), grad_lse)
    found = results_of(CPU, p, grad_out, None if grad_lse is None else grad_lse.float())
    # delta of the backward is made of out rounded to the type, so gradients are only as exact as grad_out is large
    natural = float(grad_out.double().norm()) + (0.0 if grad_lse is None else float(grad_lse.norm()))
    for name, value in wanted.items():
        assert torch.equal(found[name].isfinite(), value.isfinite())
        error = (found[name].double() - value).nan_to_num(0.0, 0.0, 0.0).norm()
        size = value.nan_to_num(0.0, 0.0, 0.0).norm()
        assert float(error) <= LIMITS[dtype] * max(float(size), natural), name


@pytest.mark.parametrize("seed", range(700, 730))
def test_masks_of_pairs_are_those_of_the_definition_in_the_fused_kernel(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # only for several rows; one row, and what is not finite, are computed without that kernel
    p = with_masks_of_pairs(drawn_problem(seed, plain_scores=True, q_len=40), seed)
    if p.dilation is None:
        monkeypatch.setattr(unfused, "forward", None)
    monkeypatch.setattr(
        choice, "suits_masked_batches", lambda problem, *_: choice.fits_masked_kernel(problem)
    )
    check(p, seed)


# ---- each way of fused calls, which would only be chosen for larger ones


def only_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "plan_of", lambda problem: None)
    monkeypatch.setattr(choice, "suits_row_by_row", lambda problem: problem.layout_heads == 1)


def only_row_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "plan_of", lambda problem: None)


def only_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_call_plan, "ROW_US", 10**9)
    monkeypatch.setattr(one_call_plan, "DENSE_RATE", 1e-9)


def only_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_call_plan, "ROW_US", 10**9)
    monkeypatch.setattr(one_call_plan, "DENSE_RATE", 1e9)


@pytest.mark.parametrize("seed", range(600, 612))
@pytest.mark.parametrize(
    "way", [only_row_by_row, only_row_batches, only_rows_at_once, only_all_keys], ids=lambda way: way.__name__
)
def test_every_way_knows_positions(
    way: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    monkeypatch.setattr(decode, "suits", lambda problem: False)
    monkeypatch.setattr(single_queries, "suits", lambda problem: False)
    check(drawn_problem(seed, plain_scores=True), seed)
