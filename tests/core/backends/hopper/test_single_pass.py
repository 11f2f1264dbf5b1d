"""deterministic=False: the single pass of the backward, emulated on the CPU and on its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from dilated_attention_pytorch.backends.hopper import HOPPER, adding
from dilated_attention_pytorch.backends.hopper.adding import Adding, Limits
from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.functional import make_problem
from tests.core.backends.drawn_problems import with_fields
from tests.core.backends.hopper.cases import ROUNDING, ROUNDINGS
from tests.core.backends.hopper.drawn_calls import drawn_call, wrong_results
from tests.core.backends.hopper.emulator.comparison import compare
from tests.core.backends.hopper.emulator.kernels import emulated
from tests.core.backends.hopper.emulator.launches import emulated_launches
from tests.core.backends.hopper.test_gpu import is_hopper
from tests.core.environment import EVERY_SHAPE

RELEASES = ("3.6.0", "3.9.0")


def set_limits(monkeypatch: pytest.MonkeyPatch, *releases: str, **limits: Any) -> None:
    """Have other limits decide about single passes, also of emulated kernels."""
    for single_pass in (SINGLE_PASS, *(emulated(each).single_pass.SINGLE_PASS for each in (None, *releases))):
        monkeypatch.setattr(single_pass, "limits", Limits(**limits))


@pytest.fixture
def of_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single pass also for rows of few blocks."""
    set_limits(monkeypatch, *RELEASES, any_order_blocks=0, any_order_blocks_of_64=0)


def problem_of(
    head_dim: int = 64, length: int = 300, heads: int = 2, kv_heads: int = 1, block: int = 128, layout_heads: int = 1,
    is_causal: bool = False, dtype: torch.dtype = torch.bfloat16, deterministic: bool = False, **options: Any,
) -> AttentionProblem:  # fmt: skip
    """A problem whose second row and column have no block."""
    n = -(-length // block)
    mask = torch.rand(layout_heads, n, n) < 0.6
    mask[:, 1] = False
    mask[:, :, 1] = False
    mask = mask.tril() if is_causal else mask
    layout = BlockLayout.from_dense(mask if layout_heads > 1 else mask[0], block, length, length, is_causal)
    q, k, v = (torch.randn(2, length, h, head_dim).to(dtype) for h in (heads, kv_heads, kv_heads))
    options |= {"is_causal": is_causal, "deterministic": deterministic}
    return make_problem(q, k, v, layout, **options).prepared_by(HOPPER, layout)


@contextmanager
def counted(module: Any) -> Iterator[list[None]]:
    """One entry for every single pass that a launch module runs."""
    calls: list[None] = []
    run = module.launch_single_pass

    def counting(*arguments: Any) -> Any:
        calls.append(None)
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch_single_pass", counting)
        # the emulator asks torch for the same bits, which fills new memory with NaN
        patch.setattr(module.SINGLE_PASS, "wants_same_bits", lambda: False)
        yield calls


@contextmanager
def seen(module: Any, method: str) -> Iterator[list[tuple[Any, Any]]]:
    """The call and the memory of every single pass of a launch module, at its `begin` or `finish`."""
    found: list[tuple[Any, Any]] = []
    kind = type(module.SINGLE_PASS)
    run = getattr(kind, method)

    def seeing(self: Any, call: Any, memory: Any) -> None:
        run(self, call, memory)
        found.append((call, memory))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, seeing)
        yield found


@pytest.mark.parametrize(
    "options",
    [
        {"head_dim": 64, "length": 300},
        {"head_dim": 64, "length": 256, "is_causal": True, "heads": 4, "kv_heads": 2, "layout_heads": 4},
        {"head_dim": 64, "length": 600, "block": 256, "dtype": torch.float16},
        {"head_dim": 128, "length": 300, "is_causal": True},
        {"head_dim": 128, "length": 384, "heads": 2, "kv_heads": 2, "dtype": torch.float16},
        {"head_dim": 64, "length": 700, "block": 64},
        {"head_dim": 64, "length": 400, "block": 64, "is_causal": True, "heads": 4, "kv_heads": 2, "layout_heads": 4},
        {"head_dim": 128, "length": 600, "block": 64, "is_causal": True, "dtype": torch.float16},
    ],
    ids=[
        *("ragged", "causal, lists per head", "blocks of 256", "head_dim 128", "float16"),
        *("blocks of 64", "blocks of 64, causal, lists per head", "blocks of 64, float16, head_dim 128"),
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_definition(of_few_blocks: None, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    problem = problem_of(**options)
    rounding = ROUNDING[problem.q.dtype]
    with emulated_launches(programs=3, seed=1) as module, counted(module) as calls:
        found = compare(problem, True, True, module.launch_forward, module.launch_backward)
    assert len(calls) == 1
    # p is rounded once more at head_dim 128
    limits = {name: ROUNDINGS[name] * rounding for name in ("grad_q", "grad_k", "grad_v")}
    assert {name: found[name] for name, limit in limits.items() if not found[name] < limit} == {}


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(40 if EVERY_SHAPE else 2))
@pytest.mark.parametrize("head_dim", [64, 128])
def test_drawn_calls_of_blocks_of_64(of_few_blocks: None, head_dim: int, seed: int) -> None:
    release = RELEASES[seed % 2]
    call = with_fields(
        drawn_call(seed, (), "plain", head_dim=head_dim, block=64, scale=3), deterministic=False
    )
    with counted(emulated(release).launch) as calls:
        assert wrong_results(call, seed, release=release) == {}
    assert len(calls) == (SINGLE_PASS.choice(call) is Adding.ANY_ORDER)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("column", [0, 1])
def test_of_two_columns_one_may_skip_most_blocks(of_few_blocks: None, column: int, head_dim: int) -> None:
    torch.manual_seed(0)
    mask = torch.ones(30, 2, dtype=torch.bool)
    mask[1:29, column] = False
    layout = BlockLayout.from_dense(mask, 64, 1920, 128)
    q, k, v = (torch.randn(1, length, 1, head_dim).bfloat16() for length in (1920, 128, 128))
    problem = make_problem(q, k, v, layout, deterministic=False).prepared_by(HOPPER, layout)
    with emulated_launches(programs=1) as module, counted(module) as calls:
        found = compare(problem, True, False, module.launch_forward, module.launch_backward)
    assert len(calls) == 1
    for name in ("grad_q", "grad_k", "grad_v"):
        assert found[name] < ROUNDINGS[name] * ROUNDING[torch.bfloat16]


@pytest.mark.parametrize(
    ("length", "heads", "blocks", "reason"),
    [
        (32_768, 1, 32, None),
        (32_832, 1, 32, "more than 32"),
        (32_768, 2, 32, "64 MiB, more than 32"),
        (32_768, 1, 31, "fewer than 32"),
    ],
)
def test_blocks_of_64_take_a_single_pass_where_it_pays(
    length: int, heads: int, blocks: int, reason: str | None
) -> None:
    column = torch.arange(-(-length // 64))
    layout = BlockLayout.from_dense((column - column[:, None]) % len(column) < blocks, 64, length, length)
    q = torch.empty(1, length, heads, 128, dtype=torch.bfloat16)
    k = q[:, :, :1]
    problem = make_problem(q, k, k, layout, deterministic=False)
    found = SINGLE_PASS.choice(problem)
    assert found is Adding.ANY_ORDER if reason is None else reason in str(found)
    # the columns of patterns share rows
    of_pattern = SINGLE_PASS.choice(replace(problem, of_pattern=True))
    assert of_pattern is Adding.ANY_ORDER or blocks < 32


def test_dq_is_written_to_heads_of_a_larger_tensor(of_few_blocks: None) -> None:
    torch.manual_seed(0)
    problem = problem_of(length=300)
    grad_q = torch.full((2, 300, 5, 64), 7.0, dtype=torch.bfloat16)

    def backward(*given: Any) -> Any:
        return module.launch_backward(*given, into=grad_q[:, :, 1:3])

    with emulated_launches(programs=2) as module, counted(module) as calls:
        found = compare(problem, True, True, module.launch_forward, backward)
    assert len(calls) == 1
    assert found["grad_q"] < ROUNDINGS["grad_q"] * ROUNDING[torch.bfloat16]
    assert (grad_q[:, :, [0, 3, 4]] == 7.0).all()


@pytest.mark.parametrize("warn_only", [False, True])
def test_who_asks_for_the_same_bits_in_a_small_call_gets_two_passes(
    of_few_blocks: None, warn_only: bool
) -> None:
    assert "same bits" in str(SINGLE_PASS.choice(problem_of(deterministic=True)))
    assert SINGLE_PASS.choice(problem_of()) is Adding.ANY_ORDER
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        assert "same bits" in str(SINGLE_PASS.choice(problem_of()))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block": 64}, "fewer than 32 blocks of 64"),
        ({}, "fewer than 6 blocks of 128"),
        ({"block": 64, "deterministic": True}, "same bits"),
        ({"head_dim": 32}, "head_dim 32"),
        ({"softcap": 20.0}, "score terms"),
        ({"kv_lengths": torch.tensor([200, 300], dtype=torch.int32)}, "positions"),
        ({"segment_lengths": [128, 256], "dilation_rates": [1, 2]}, "dilated"),
        ({"head_dim": 128, "is_causal": True, "dtype": torch.float16}, "registers"),
        ({"head_dim": 128, "length": 900, "dtype": torch.float16}, "registers"),
    ],
)
def test_other_calls_take_two_passes(options: dict[str, Any], reason: str) -> None:
    assert reason in str(SINGLE_PASS.choice(problem_of(**options)))


def test_sums_that_are_added_to_in_any_order_take_a_quarter_of_the_device_at_most(
    monkeypatch: pytest.MonkeyPatch, of_few_blocks: None
) -> None:
    for block in (64, 128):
        problem = problem_of(head_dim=64, length=256, heads=2, block=block)
        n_bytes = 4 * 2 * 256 * 2 * 64
        monkeypatch.setattr(adding, "device_memory", lambda device, n_bytes=n_bytes: 4 * n_bytes)
        assert SINGLE_PASS.choice(problem) is Adding.ANY_ORDER
        monkeypatch.setattr(adding, "device_memory", lambda device, n_bytes=n_bytes: 4 * n_bytes - 1)
        assert "1 / 4 of the GPU's memory" in str(SINGLE_PASS.choice(problem))


def test_small_calls_of_the_default_take_two_passes() -> None:
    problem = replace(problem_of(), deterministic=True)
    with emulated_launches(programs=2) as module, counted(module) as calls:
        compare(problem, True, False, module.launch_forward, module.launch_backward)
    assert not calls


@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block", [64, 128])
def test_gradients_on_the_gpu_are_those_of_the_default(
    of_few_blocks: None, block: int, head_dim: int, is_causal: bool
) -> None:
    from dilated_attention_pytorch.backends.hopper import launch

    torch.manual_seed(0)
    n = -(-2100 // block)
    mask = torch.rand(n, n) < 0.4
    layout = BlockLayout.from_dense(mask.tril() if is_causal else mask, block, 2100, 2100, is_causal).to(
        "cuda"
    )
    q, k, v = (
        torch.randn(2, 2100, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (4, 2, 2)
    )
    grad_out = torch.randn_like(q)

    def gradients(deterministic: bool) -> tuple[torch.Tensor, ...]:
        out, lse = block_sparse_attention(
            q, k, v, layout, is_causal=is_causal, return_lse=True, deterministic=deterministic
        )
        return torch.autograd.grad((out, lse), (q, k, v), (grad_out, torch.ones_like(lse)))

    with counted(launch) as calls:
        fast = gradients(False)
    assert len(calls) == 1
    for one, other in zip(fast, gradients(True), strict=True):
        # both are rounded, and so are p and ds of each
        assert ((one - other).float().norm() / other.float().norm()).item() < 4 * ROUNDING[torch.bfloat16]
