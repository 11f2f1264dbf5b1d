"""The single pass of rows cut into ranges: where lists are cut, results, and who gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from dilated_attention_pytorch.backends.hopper.adding import Limits, row_ranges
from tests.core.backends.hopper.cases import ROUNDING, ROUNDINGS
from tests.core.backends.hopper.emulator.comparison import compare
from tests.core.backends.hopper.emulator.launches import emulated_launches
from tests.core.backends.hopper.test_gpu import is_hopper
from tests.core.backends.hopper.test_single_pass import counted, problem_of, seen, set_limits


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 300 queries takes more than one range."""
    set_limits(monkeypatch, l2_bytes=2**17, most_ranges=9, range_blocks=1, any_order_blocks=0)


@pytest.mark.parametrize(
    "options",
    [
        {"head_dim": 64, "length": 700},
        {"head_dim": 64, "length": 1152, "is_causal": True, "heads": 4, "kv_heads": 2, "layout_heads": 2},
        {"head_dim": 64, "length": 600, "block": 256, "dtype": torch.float16},
        {"head_dim": 128, "length": 800, "heads": 1},
    ],
    ids=["ragged", "causal, lists per kv head", "blocks of 256", "head_dim 128"],
)
def test_gradients_are_those_of_the_definition(small_cache: None, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    problem = problem_of(**options)
    rounding = ROUNDING[problem.q.dtype]
    with (
        emulated_launches(programs=3, seed=1) as module,
        counted(module) as calls,
        seen(module, "begin") as passes,
    ):
        found = compare(problem, True, True, module.launch_forward, module.launch_backward)
    assert len(calls) == 1
    # dk and dv are rounded after every range
    limits = {name: 1.3 * ROUNDINGS[name] * rounding for name in ("grad_q", "grad_k", "grad_v")}
    assert {name: found[name] for name, limit in limits.items() if not found[name] < limit} == {}
    call, memory = passes[0]
    made, p, n_ranges = memory.cuts, call.problem, memory.n_ranges
    assert n_ranges > 1
    per_range = -(-p.grid.n_rows // n_ranges)
    offsets, rows = p.cols.indptr.tolist(), p.cols.indices.tolist()
    for i, places in enumerate(made.tolist()):
        for r in range(n_ranges):
            found_rows = [row for row in rows[offsets[i] : offsets[i + 1]] if row // per_range == r]
            assert rows[places[r] : places[r + 1]] == found_rows


def test_who_has_ranges() -> None:
    problem = problem_of(length=1500)
    n_blocks = problem.cols.indices.numel() // 12
    assert n_blocks > 3
    limits = Limits(l2_bytes=2**18, range_blocks=1)
    assert row_ranges(problem, limits) == -(-12 * 128 * 64 * 8 // 2**18) == 3
    assert row_ranges(problem, replace(limits, most_ranges=2)) == 1
    assert row_ranges(problem, replace(limits, range_blocks=n_blocks // 2)) == 2
    assert row_ranges(replace(problem, of_pattern=True), limits) == 1
    assert row_ranges(problem_of(length=256), limits) == 1
    assert row_ranges(problem_of(length=1500, layout_heads=2), limits) == 1  # unlike lists for a kv head


@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_gradients_on_the_gpu_are_those_of_the_default(small_cache: None, head_dim: int) -> None:
    torch.manual_seed(0)
    layout = BlockLayout.from_dense(torch.rand(2, 17, 17) < 0.6, 128, 2100, 2100).to("cuda")
    q, k, v = (
        torch.randn(2, 2100, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (4, 2, 2)
    )
    grad_out = torch.randn_like(q)
    found = [
        torch.autograd.grad(
            block_sparse_attention(q, k, v, layout, deterministic=deterministic), (q, k, v), grad_out
        )
        for deterministic in (False, True)
    ]
    for one, other in zip(*found, strict=True):
        # all are rounded, dk and dv of ranges more than once, and so are p and ds of each
        assert ((one - other).float().norm() / other.float().norm()).item() < 5 * ROUNDING[torch.bfloat16]
