"""The Hopper kernels, emulated on the CPU, against the definition; `nox -s emulator` runs every short case of the GPU's grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends import registry
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.functional import make_problem
from tests.core.attention_cases import FLOAT32, Case
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.cases import ROUNDING, ROUNDINGS, SERVED, check, label
from tests.core.backends.hopper.emulator.backend import EmulatedBackend
from tests.core.environment import EVERY_SHAPE


def problem_of(
    head_dim: int, block: int, is_causal: bool, *, q_len: int = 200, kv_len: int | None = None, batch: int = 1,
    heads: int = 2, kv_heads: int = 1, layout_heads: int = 1, density: float = 0.6, empty: tuple[int, ...] = (),
    dtype: torch.dtype = torch.bfloat16, v_head_dim: int | None = None, **options: Any,
) -> AttentionProblem:  # fmt: skip
    """A problem with blocks drawn at random; `empty` rows and columns have none."""
    kv_len = q_len if kv_len is None else kv_len
    rows, columns = -(-q_len // block), -(-kv_len // block)
    mask = torch.rand(layout_heads, rows, columns) < density
    mask[:, list(empty)] = False
    mask[:, :, list(empty)] = False
    layout = BlockLayout.from_dense(mask if layout_heads > 1 else mask[0], block, q_len, kv_len, is_causal)

    def normal(length: int, n: int, dim: int = head_dim) -> Tensor:
        return torch.randn(batch, length, n, dim).to(dtype)

    q, k = normal(q_len, heads), normal(kv_len, kv_heads)
    v = normal(kv_len, kv_heads, v_head_dim or head_dim)
    return make_problem(q, k, v, layout, is_causal=is_causal, **options).prepared_by(HOPPER, layout)


def over_the_limit(found: dict[str, float], dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """The errors that reach the limit of the cases for the GPU."""
    limits = {name: roundings * ROUNDING[dtype] for name, roundings in ROUNDINGS.items()} | {"lse": FLOAT32}
    return {name: error for name, error in found.items() if not error < limits[name]}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_results_are_those_of_the_definition(head_dim: int, block: int, is_causal: bool) -> None:
    assert over_the_limit(emulator.errors(problem_of(head_dim, block, is_causal), lse_gradient=True)) == {}


@pytest.mark.parametrize(
    ("head_dim", "v_head_dim", "block", "is_causal"),
    [(192, 128, 64, True), (192, 128, 128, False), (192, 192, 128, True), (136, 192, 64, False)],
)
def test_tiles_of_192_columns_are_two(head_dim: int, v_head_dim: int, block: int, is_causal: bool) -> None:
    problem = problem_of(head_dim, block, is_causal, q_len=135, v_head_dim=v_head_dim, density=0.8)
    assert over_the_limit(emulator.errors(problem, lse_gradient=True)) == {}


@pytest.mark.parametrize("block", [64, 128])
def test_every_head_may_have_lists_of_its_own(block: int) -> None:
    problem = problem_of(
        64, block, False, q_len=320, heads=4, kv_heads=2, layout_heads=4, batch=2, empty=(1,)
    )
    assert over_the_limit(emulator.errors(problem, programs=3)) == {}


def test_whole_blocks_before_the_first_query() -> None:
    problem = problem_of(64, 64, True, q_len=100, kv_len=292, density=0.8)
    assert over_the_limit(emulator.errors(problem)) == {}


@pytest.mark.parametrize(("head_dim", "rates"), [(64, (1, 4)), (128, (2,)), (64, (2, 16))])
def test_dilated_tokens(head_dim: int, rates: tuple[int, ...]) -> None:
    segments = [128 * 2**i for i in range(len(rates))]
    problem = problem_of(
        head_dim, 128, True, q_len=368, density=0.8, segment_lengths=segments, dilation_rates=rates
    )
    assert over_the_limit(emulator.errors(problem, lse_gradient=True)) == {}


@pytest.mark.parametrize("release", ["3.6.0", "3.9.0"])
def test_float16_as_for_other_releases_of_triton(release: str) -> None:
    problem = problem_of(64, 128, False, dtype=torch.float16)
    assert over_the_limit(emulator.errors(problem, release=release), torch.float16) == {}


def test_launches_hand_over_what_the_kernels_read() -> None:
    assert (
        over_the_limit(emulator.errors(problem_of(64, 64, True), lse_gradient=True, through_launch=True))
        == {}
    )


@pytest.mark.parametrize("seed", range(2))
def test_bits_do_not_depend_on_who_runs_when(seed: int) -> None:
    torch.manual_seed(0)
    problem = problem_of(64, 64, True, q_len=320)
    grad_out = torch.randn_like(problem.q)
    options = [
        {"seed": 0, "programs": 1, "delay": 0.0, "preempt": 0.0},
        {"seed": seed, "programs": 3, "preempt": 0.5, "delay": 0.9},
    ]
    results = []
    for each in options:
        out, lse = emulator.forward(problem, **each)  # type: ignore[arg-type]
        results.append((out, lse, *emulator.backward(problem, out, lse, grad_out, **each)[:3]))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def is_short(case: Case) -> bool:
    """Less than about 5 s of emulation."""
    blocks = case.batch * case.heads * max(case.q_len, case.keys) * case.keys
    return blocks <= 2**20


FEW = ("65_causal-64-64", "strided-64-64")  # the second copies what it cannot read
CALLS = [case for case in SERVED if (is_short(case) if EVERY_SHAPE else label(case) in FEW)]


@pytest.mark.parametrize("case", CALLS, ids=label)
def test_calls_through_the_library(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [backend for backend in registry.BACKENDS if backend.name != "hopper"]
    monkeypatch.setattr(registry, "BACKENDS", (EmulatedBackend(), *others))
    check(case, torch.bfloat16, "cpu")
