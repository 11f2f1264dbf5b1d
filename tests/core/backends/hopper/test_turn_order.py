"""Programs of the single pass that take turns: the lists of turns, the same bits in every order of events, and who takes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
from dilated_attention_pytorch.backends.hopper import HOPPER, turn_order
from dilated_attention_pytorch.backends.hopper.adding import Adding, heads_in_turn
from dilated_attention_pytorch.backends.hopper.passes import offsets_of
from dilated_attention_pytorch.backends.hopper.prepared import work_order_of
from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS, turn_lists_of
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.environment_settings import BACKWARD_SUMS
from dilated_attention_pytorch.functional import make_problem
from tests.core.backends.hopper.cases import ROUNDING, ROUNDINGS
from tests.core.backends.hopper.emulator.comparison import compare
from tests.core.backends.hopper.emulator.launches import emulated_launches
from tests.core.backends.hopper.test_gpu import is_hopper
from tests.core.backends.hopper.test_single_pass import counted, seen, set_limits


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns also in small calls, at head_dim 64, and of a single head."""
    monkeypatch.setattr(turn_order, "LEAST_COLUMNS", 0)
    set_limits(
        monkeypatch, turn_dims=(64, 128), turn_columns=0, turn_heads=1, turn_blocks=0, any_order_blocks=0
    )


def layout_of(length: int = 1200, block: int = 128, heads: int = 1) -> BlockLayout:
    """A layout whose columns differ in length; every head has rates of its own."""
    rates = [(1, 2), (1, 3), (2,), (1,)]
    configs = [
        SparsePatternConfig(block_size=block, sparsity_ratio=0.45, dilation_rates=rates[h])
        for h in range(heads)
    ]
    return BlockLayout.from_config(configs if heads > 1 else configs[0], length)


def problem_of(
    layout: BlockLayout, head_dim: int = 128, heads: int = 2, kv_heads: int = 1, dtype: torch.dtype = torch.bfloat16, batch: int = 1,
) -> AttentionProblem:  # fmt: skip
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, layout.q_len, h, head_dim).to(dtype) for h in (heads, kv_heads, kv_heads))
    return make_problem(q, k, v, layout).prepared_by(HOPPER, layout)


# ---- lists


def test_lists_of_turns_are_those_of_the_definition(of_any_size: None) -> None:
    layout = layout_of(heads=2)
    problem = problem_of(layout, kv_heads=2)
    rows, turns = turn_lists_of(problem).tolist()
    at, order = offsets_of(problem).columns, work_order_of(problem)[offsets_of(problem).columns_at :]
    n = layout.grid.n_cols
    started = order[at.order : at.order + 2 * n].view(2, n).tolist()
    done = [[0] * n for _ in range(2)]
    offsets, indices = layout.col_lists.indptr.tolist(), layout.col_lists.indices.tolist()
    for head in range(2):
        for column in started[head]:
            lo, hi = offsets[head * n + column : head * n + column + 2]
            assert rows[lo:hi] == indices[lo:hi][::-1]
            for place in range(lo, hi):
                assert turns[place] == done[head][rows[place]]
                done[head][rows[place]] += 1
    assert turn_lists_of(problem).data_ptr() % 16 == turn_lists_of(problem)[1].data_ptr() % 16 == 0


# ---- results


@pytest.mark.parametrize(
    ("of_layout", "options"),
    [
        ({"length": 650}, {}),
        ({"length": 700}, {"head_dim": 64, "dtype": torch.float16, "batch": 2}),
        ({"length": 600, "heads": 2}, {"heads": 4, "kv_heads": 2}),
        ({"length": 700, "block": 256}, {"kv_heads": 2}),
    ],
    ids=["ragged", "float16 of head_dim 64", "lists per head", "blocks of 256"],
)
def test_gradients_are_those_of_the_definition(
    of_any_size: None, of_layout: dict[str, Any], options: dict[str, Any]
) -> None:
    problem = problem_of(layout_of(**of_layout), **options)
    rounding = ROUNDING[problem.q.dtype]
    with emulated_launches(programs=3, seed=1) as module, counted(module) as calls:
        found = compare(problem, True, True, module.launch_forward, module.launch_backward)
    assert len(calls) == 1
    limits = {name: ROUNDINGS[name] * rounding for name in ("grad_q", "grad_k", "grad_v")}
    assert {name: found[name] for name, limit in limits.items() if not found[name] < limit} == {}


def backward(problem: AttentionProblem, programs: int, **options: Any) -> tuple[Gradients, Tensor]:
    """The gradients of the emulated kernels, and the sums of dq."""
    torch.manual_seed(1)
    grad_out = torch.randn(problem.q.shape).to(problem.q.dtype)
    with emulated_launches(programs, **options) as module, counted(module), seen(module, "finish") as passes:
        out, lse = module.launch_forward(problem)
        made = module.launch_backward(problem, out, lse, grad_out, None)
    return made, passes[0][1].sums


def test_any_order_of_events_gives_the_same_bits(of_any_size: None) -> None:
    problem = problem_of(layout_of(650), heads=1)
    orders = [
        {"programs": 2, "seed": 1},
        {"programs": 4, "seed": 3, "delay": 0.99},
    ]
    made = [backward(problem, **order) for order in orders]
    for grads, sums in made[1:]:
        assert torch.equal(sums, made[0][1])
        assert all(torch.equal(one, other) for one, other in zip(grads[:3], made[0][0][:3], strict=True))
    unordered = [backward(replace(problem, deterministic=False), **order)[1] for order in orders]
    assert not torch.equal(*unordered[:2])  # so the orders do differ


def test_a_turn_is_passed_on_by_a_release_and_taken_by_an_acquire() -> None:
    """Which the emulator cannot tell from relaxed accesses; on a GPU others saw the number before the addition."""
    from dilated_attention_pytorch.backends.hopper.kernels import turns

    source = Path(turns.__file__).read_text("utf-8")
    assert re.findall(r"\b(?:ld|st|red|atom)\.[.\w]+", source) == [
        "ld.acquire.gpu.global.b32", "red.release.gpu.global.add.u32"
    ]  # fmt: skip
    assert source.index("ld.acquire") < source.index("fence.proxy.async") < source.index("red.release")


# ---- which calls


def large(
    heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.bfloat16, is_causal: bool = False, **options: Any
) -> AttentionProblem:  # fmt: skip
    """A problem of 65,536 tokens, of which no number is read."""
    layout = large_layout(**options)
    q, k, v = (
        torch.empty(1, 1, 1, 1, dtype=dtype).expand(1, n, h, 128)
        for n, h in ((layout.q_len, heads), (layout.kv_len, kv_heads), (layout.kv_len, kv_heads))
    )
    return make_problem(q, k, v, layout, is_causal=is_causal).prepared_by(HOPPER, layout)


def large_layout(
    length: int = 2**16,
    kv_length: int = 2**16,
    ratio: float = 0.04,
    pattern: str = "dilated_sparse",
    causal: bool = False,
    rates: tuple[int, ...] | None = (1, 2, 4, 8),
) -> BlockLayout:
    config = SparsePatternConfig(
        pattern_type=pattern,
        block_size=128,
        sparsity_ratio=ratio,
        dilation_rates=rates if pattern == "dilated_sparse" else None,
    )
    return BlockLayout.from_config(config, length, kv_length, causal=causal)


def test_large_calls_of_patterns_take_turns() -> None:
    assert SINGLE_PASS.choice(large()) is Adding.TURNS
    assert SINGLE_PASS.choice(large(heads=8, kv_heads=2, pattern="local_window")) is Adding.TURNS
    assert SINGLE_PASS.choice(large(dtype=torch.float16)) is Adding.TURNS
    assert SINGLE_PASS.choice(replace(large(), deterministic=False)) is Adding.ANY_ORDER


def test_turns_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = large()
    monkeypatch.setenv(BACKWARD_SUMS.name, "off")
    assert "is off" in str(SINGLE_PASS.choice(prepared))
    before = large()
    monkeypatch.delenv(BACKWARD_SUMS.name)
    assert "no faster" in str(SINGLE_PASS.choice(before))  # its layout was prepared without turns


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 1, "kv_heads": 1, "ratio": 0.2},
        {"ratio": 0.01},
        {"pattern": "global_local"},
        {"length": 2**15, "kv_length": 2**15},
        {"length": 2**16 - 128, "ratio": 0.1},
        {"is_causal": True},
        {"rates": None},
        {"rates": (1, 16)},
    ],
    ids=[
        "one head",
        "short columns",
        "pattern",
        "few columns",
        "more keys than queries",
        "causal",
        "all rates",
        "a long rate",
    ],
)
def test_others_take_two_passes(options: dict[str, Any]) -> None:
    assert "no faster" in str(SINGLE_PASS.choice(large(**options)))


def test_query_heads_with_lists_of_their_own_take_no_turns(of_any_size: None) -> None:
    """Their columns are started in the order of the first of them, so programs would wait for ever."""
    layout = layout_of(heads=2)
    assert SINGLE_PASS.choice(problem_of(layout, kv_heads=2)) is Adding.TURNS
    assert SINGLE_PASS.choice(problem_of(layout, kv_heads=1)) is not Adding.TURNS


def test_layouts_without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = large_layout()
    assert turn_order.has_turns(layout, None)
    assert not turn_order.has_turns(layout, TokenDilation((1024,), (2,)))
    assert not turn_order.has_turns(large_layout(causal=True), None)
    assert not turn_order.has_turns(BlockLayout.from_dense(layout.to_dense(), 128), None)
    monkeypatch.setenv(BACKWARD_SUMS.name, "off")
    assert not turn_order.has_turns(layout, None)


def test_heads_in_turn_divide_those_of_the_call() -> None:
    layout = layout_of(256)
    found = [heads_in_turn(problem_of(layout, heads=n, kv_heads=n)) for n in range(1, 10)]
    assert found == [1, 2, 3, 4, 1, 3, 1, 4, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1)])
def test_runs_on_the_gpu_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, of_any_size: None, heads: int, kv_heads: int
) -> None:
    from dilated_attention_pytorch.backends.hopper import launch

    layout = layout_of(128 * 170 - 5).to("cuda")
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, layout.q_len, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    )
    grad_out = torch.randn_like(q)
    out = block_sparse_attention(q, k, v, layout)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (q, k, v), grad_out, retain_graph=True)

    with counted(launch) as calls:
        made = [gradients() for _ in range(20)]
    assert len(calls) == 20
    for other in made[1:]:
        assert all(torch.equal(x, y) for x, y in zip(made[0], other, strict=True))
    monkeypatch.setenv(BACKWARD_SUMS.name, "off")
    for one, other in zip(made[0], gradients(), strict=True):
        # both are rounded, and so are p and ds of each
        assert ((one - other).float().norm() / other.float().norm()).item() < 4 * ROUNDING[torch.bfloat16]
