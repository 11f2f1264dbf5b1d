"""Sums of dq in fixed point: which calls get them, their scales, and that the order of the additions does not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from dilated_attention_pytorch.backends.hopper import HOPPER, adding
from dilated_attention_pytorch.backends.hopper.adding import (
    SHARE,
    SHARE_IN_ANY_ORDER,
    Adding,
    Limits,
    device_memory,
    fixed_point_pays,
    is_on,
    sums_fit,
)
from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients
from dilated_attention_pytorch.backends.reference import attention_reference
from dilated_attention_pytorch.environment_settings import BACKWARD_SUMS
from dilated_attention_pytorch.functional import make_problem
from tests.core.backends.hopper.cases import ROUNDING
from tests.core.backends.hopper.emulator.comparison import distance
from tests.core.backends.hopper.emulator.launches import emulated_launches
from tests.core.backends.hopper.test_gpu import is_hopper
from tests.core.backends.hopper.test_single_pass import counted, problem_of, seen, set_limits


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in fixed point also in small calls, and at head_dim 128."""
    monkeypatch.delenv(BACKWARD_SUMS.name, raising=False)
    set_limits(
        monkeypatch, fixed_point_dims=(64, 128), fixed_point_blocks=0, fixed_point_queries=0, any_order_blocks=0
    )  # fmt: skip


# ---- which calls


@pytest.mark.parametrize(("setting", "expected"), [(None, True), ("off", False), ("auto", True)])
def test_the_setting_is_auto_by_default(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, expected: bool
) -> None:
    monkeypatch.delenv(BACKWARD_SUMS.name, raising=False)
    if setting is not None:
        monkeypatch.setenv(BACKWARD_SUMS.name, setting)
    assert is_on() is expected


def test_another_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKWARD_SUMS.name, "1")
    with pytest.raises(ValueError, match="must be auto or off, got '1'"):
        is_on()


def test_the_sums_take_a_sixteenth_of_the_device_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(head_dim=64, length=256, heads=2)
    n_bytes = 4 * 2 * 256 * 2 * 64
    monkeypatch.setattr(adding, "device_memory", lambda device: 16 * n_bytes)
    assert sums_fit(problem, SHARE)
    monkeypatch.setattr(adding, "device_memory", lambda device: 16 * n_bytes - 1)
    assert not sums_fit(problem, SHARE)


@pytest.mark.parametrize(
    ("blocks", "heads", "head_dim", "expected"),
    [(8, 64, 64, True), (7, 64, 64, False), (8, 63, 64, False), (8, 64, 128, False)],
    ids=["enough", "blocks", "heads", "head_dim"],
)
def test_two_passes_serve_what_they_serve_as_fast(
    monkeypatch: pytest.MonkeyPatch, blocks: int, heads: int, head_dim: int, expected: bool
) -> None:
    monkeypatch.delenv(BACKWARD_SUMS.name, raising=False)
    n = 32
    column = torch.arange(n)
    layout = BlockLayout.from_dense(((column[None] - column[:, None]) % n) < blocks, 128)
    q = torch.empty(1, 1, 1, 1, dtype=torch.bfloat16).expand(1, 128 * n, heads, head_dim)
    problem = make_problem(q, q, q, layout).prepared_by(HOPPER, layout)
    assert fixed_point_pays(problem, Limits()) is expected
    assert (SINGLE_PASS.choice(problem) is Adding.FIXED_POINT) is expected


def test_all_memory_of_a_gpu_counts_not_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Properties:
        total_memory = 123

    def properties(index: int) -> type[Properties]:
        asked.append(index)
        return Properties

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(adding, "MEMORY", {})
    assert [device_memory(torch.device("cuda", 3)) for _ in range(2)] == [123, 123]
    assert asked == [3]


def test_calls_that_want_the_same_bits_get_them_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, of_any_size: None
) -> None:
    problem = problem_of(deterministic=True)
    assert SINGLE_PASS.choice(problem) is Adding.FIXED_POINT
    assert SINGLE_PASS.choice(problem_of(deterministic=False)) is Adding.ANY_ORDER
    monkeypatch.setattr(adding, "sums_fit", lambda problem, share: share == SHARE_IN_ANY_ORDER)
    assert "too much memory" in str(SINGLE_PASS.choice(problem))
    assert SINGLE_PASS.choice(problem_of(deterministic=False)) is Adding.ANY_ORDER
    monkeypatch.setenv(BACKWARD_SUMS.name, "off")
    assert "is off" in str(SINGLE_PASS.choice(problem))


def test_two_passes_serve_float16_whose_products_may_overflow(of_any_size: None) -> None:
    assert "overflowed" in str(SINGLE_PASS.choice(problem_of(dtype=torch.float16, deterministic=True)))
    assert SINGLE_PASS.choice(problem_of(dtype=torch.float16, deterministic=False)) is Adding.ANY_ORDER


def test_after_torch_asks_for_the_same_bits_no_sums_are_float32(of_any_size: None) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert SINGLE_PASS.choice(problem_of(deterministic=False)) is Adding.FIXED_POINT
    finally:
        torch.use_deterministic_algorithms(False)


# ---- results


class Given:
    """A problem with gradients of out and lse, and the gradients by the definition."""

    def __init__(self, problem: AttentionProblem, grad_out: Tensor, grad_lse: Tensor) -> None:
        self.problem, self.grad_out, self.grad_lse = problem, grad_out, grad_lse

    @classmethod
    def drawn(cls, problem: AttentionProblem, seed: int = 0) -> Given:
        p = problem
        torch.manual_seed(seed)
        grad_lse = torch.randn(p.batch, p.num_heads, p.q_len)
        return cls(p, torch.randn(p.q.shape).to(p.q.dtype), grad_lse)

    def wanted(self) -> list[Tensor]:
        leaves = [getattr(self.problem, name).detach().double().requires_grad_() for name in "qkv"]
        out, lse = attention_reference(replace(self.problem, **dict(zip("qkv", leaves))))[:2]
        seen = torch.isfinite(lse)
        given = [self.grad_out.double(), torch.where(seen, self.grad_lse.double(), 0.0)]
        return list(torch.autograd.grad([out, torch.where(seen, lse, 0.0)], leaves, given))

    def found(self, fixed_point: bool = True, programs: int = 2, **options: Any) -> tuple[Gradients, Tensor]:
        """The gradients of the emulated kernels, and the sums of dq."""
        problem = replace(self.problem, deterministic=fixed_point)
        with (
            emulated_launches(programs, **options) as module,
            counted(module) as calls,
            seen(module, "finish") as passes,
        ):
            out, lse = module.launch_forward(problem)
            made = module.launch_backward(problem, out, lse, self.grad_out, self.grad_lse)
        assert len(calls) == len(passes) == 1
        sums = passes[0][1].sums
        assert sums.dtype is (torch.int32 if fixed_point else torch.float32)
        return made, sums


def test_any_order_of_additions_gives_the_same_bits(of_any_size: None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 512, 1, 64).to(torch.bfloat16) for _ in "qkv")
    layout = BlockLayout.from_dense(torch.ones(4, 4, dtype=torch.bool), 128)
    given = Given.drawn(make_problem(q, k, v, layout).prepared_by(HOPPER, layout))
    orders = [(2, 1), (3, 2)]
    made = [given.found(programs=programs, seed=seed) for programs, seed in orders]
    for grads, sums in made[1:]:
        assert torch.equal(sums, made[0][1])
        assert all(torch.equal(one, other) for one, other in zip(grads[:3], made[0][0][:3], strict=True))
    unordered = [given.found(False, programs, seed=seed)[1] for programs, seed in orders]
    assert not torch.equal(*unordered)  # so the orders do differ


def test_the_largest_possible_sums_fit(of_any_size: None) -> None:
    sign = torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0).to(torch.bfloat16)
    signs = sign[None, :, None, None].expand(1, 256, 1, 64)
    layout = BlockLayout.from_dense(torch.ones(2, 2, dtype=torch.bool), 128)
    # every key adds to dq with the same sign, and 64 * 1.4**2 is 0.98 of a power of two
    problem = make_problem(torch.zeros_like(signs), 3 * signs, 1.4 * signs, layout).prepared_by(
        HOPPER, layout
    )
    grad_out = torch.full((1, 256, 1, 64), 1.4, dtype=torch.bfloat16)
    given = Given(problem, grad_out, torch.zeros(1, 1, 256))
    grads, sums = given.found()
    assert 2**28 < int(sums.abs().max()) < 2**29
    assert distance(grads.q, given.wanted()[0]) < 3 * ROUNDING[torch.bfloat16]  # all ds are rounded alike


@pytest.mark.parametrize(
    "options",
    [
        {"head_dim": 128, "length": 300, "layout_heads": 2, "is_causal": True},
        {"head_dim": 64, "length": 384},
    ],
    ids=["128", "64"],
)
@pytest.mark.parametrize(
    ("of_k", "of_v", "of_grad_out", "of_grad_lse"),
    [(1.0, 1.0, 1.0, 1e4), (1e4, 1e-4, 1e4, 1.0)],
    ids=["lse", "large"],
)
def test_errors_are_those_of_float32_sums(
    of_any_size: None,
    options: dict[str, Any],
    of_k: float,
    of_v: float,
    of_grad_out: float,
    of_grad_lse: float,
) -> None:
    torch.manual_seed(1)
    problem = problem_of(**options)
    q, k, v = (problem.q / of_k, problem.k * of_k, problem.v * of_v)
    given = Given.drawn(replace(problem, q=q, k=k, v=v))
    given.grad_out *= of_grad_out
    given.grad_lse *= of_grad_lse
    given.grad_out[:, 7] = 0.0
    wanted = given.wanted()
    ours, theirs = (given.found(fixed_point)[0] for fixed_point in (True, False))
    assert distance(ours.q, wanted[0]) < 1.05 * distance(theirs.q, wanted[0]) < 0.02
    assert torch.equal(ours.k, theirs.k)
    assert torch.equal(ours.v, theirs.v)
    assert not ours.q[:, 128:256].any()  # they see no key


@pytest.mark.parametrize(
    ("of_k", "of_v", "of_grad_out"),
    [(1e4, 1e-20, 1e20), (1e-20, 1e20, 1.0), (1e4, 1e-20, 1e-8), (1e15, 1e15, 1e-25)],
)
def test_extreme_numbers(of_any_size: None, of_k: float, of_v: float, of_grad_out: float) -> None:
    torch.manual_seed(2)
    problem = problem_of(head_dim=64, length=384, heads=1)
    q, k, v = (problem.q / of_k, problem.k * of_k, problem.v * of_v)
    given = Given.drawn(replace(problem, q=q, k=k, v=v))
    given.grad_out *= of_grad_out
    given.grad_lse *= 0.0
    ours, theirs = (given.found(fixed_point)[0] for fixed_point in (True, False))
    wanted = given.wanted()[0]
    assert distance(ours.q, wanted) < 1.05 * distance(theirs.q, wanted) < 0.02


def test_what_is_not_finite_stays_with_its_query(of_any_size: None) -> None:
    torch.manual_seed(3)
    problem = problem_of(head_dim=64, length=384, heads=1)
    clean = Given.drawn(problem)
    q, grad_out, grad_lse = problem.q.clone(), clean.grad_out.clone(), clean.grad_lse.clone()
    q[0, 5, 0, 3] = torch.nan
    grad_out[0, 300, 0, 0] = torch.inf
    grad_lse[1, 0, 6] = torch.nan
    q[1, 130, 0, 0] = torch.nan  # sees no key
    found = Given(replace(problem, q=q), grad_out, grad_lse).found()[0].q
    wanted = clean.found()[0].q
    bad = torch.zeros(2, 384, dtype=torch.bool)
    bad[0, 5] = bad[0, 300] = bad[1, 6] = True
    assert found[bad].isnan().all()
    # a NaN in a tile makes the forward scale its sums at another time
    assert distance(found[~bad], wanted[~bad]) < ROUNDING[torch.bfloat16]


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_reaches_its_whole_head(of_any_size: None, name: str, number: float) -> None:
    torch.manual_seed(6)
    problem = problem_of(head_dim=64, length=256, heads=4, kv_heads=2, is_causal=True)
    changed = getattr(problem, name).clone()
    changed[0, 120, 0, 3] = number
    found = Given.drawn(replace(problem, **{name: changed})).found()[0].q
    assert found[0, :128, :2].isnan().all()
    assert found[0, :, 2:].isfinite().all()
    assert found[1].isfinite().all()
    assert not found[0, 128:].any()  # they see no key


def test_keys_in_no_block_may_be_anything(of_any_size: None) -> None:
    torch.manual_seed(4)
    problem = problem_of(head_dim=64, length=384, heads=1)
    clean = Given.drawn(problem)
    k, v = problem.k.clone(), problem.v.clone()
    k[:, 128:256], v[:, 128:256] = 1e38, 1e38
    k[0, 129] = torch.nan
    found = Given(replace(problem, k=k, v=v), clean.grad_out, clean.grad_lse).found()
    wanted = clean.found()
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0].q, wanted[0].q)


@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize(("head_dim", "is_causal"), [(64, True), (128, False)])
def test_runs_on_the_gpu_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, of_any_size: None, head_dim: int, is_causal: bool
) -> None:
    from dilated_attention_pytorch.backends.hopper import launch

    torch.manual_seed(0)
    mask = torch.rand(4, 17, 17) < 0.6
    layout = BlockLayout.from_dense(mask.tril() if is_causal else mask, 128, 2100, 2100, is_causal).to("cuda")
    q, k, v = (
        torch.randn(2, 2100, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (4, 2, 2)
    )
    grad_out = torch.randn_like(q)
    out, lse = block_sparse_attention(q, k, v, layout, is_causal=is_causal, return_lse=True)

    def gradients(setting: str) -> tuple[Tensor, ...]:
        monkeypatch.setenv(BACKWARD_SUMS.name, setting)
        given = (grad_out, torch.ones_like(lse))
        return torch.autograd.grad((out, lse), (q, k, v), given, retain_graph=True)

    with counted(launch) as calls:
        made = [gradients("auto") for _ in range(20)]
    assert len(calls) == 20
    for other in made[1:]:
        assert all(torch.equal(x, y) for x, y in zip(made[0], other, strict=True))
    for ours, theirs in zip(made[0], gradients("off"), strict=True):
        # both are rounded, and so are p and ds of each
        assert ((ours - theirs).float().norm() / theirs.float().norm()).item() < 4 * ROUNDING[torch.bfloat16]
