"""Packed sequences over processes: results and gradients against one process, errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    DistributedSparseConfig,
    PackedSharding,
    SparsePatternConfig,
    block_sparse_attention_varlen,
    distributed_block_sparse_attention_varlen,
)
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo, run_processes
from tests.core.distributed.one_process import mesh_of_one
from tests.core.distributed.replay import Replay
from tests.core.distributed.varlen_cases import BY_NAME, CASES, Case, check, local_call

pytestmark = needs_gloo

REPEATED = ("a pattern per head", "softcap, sinks and lse", "contiguous, not causal")


def call(case: Case) -> dict[str, Tensor]:
    group: Any = torch.distributed.group.WORLD
    return local_call(case, partial(DistributedSparseConfig, group))


def all_calls(rank: int, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    made = {name: call(BY_NAME[name]) for name in names}
    for name in REPEATED:
        again = call(BY_NAME[name])
        assert all(x.equal(again[key]) for key, x in made[name].items()), name
    with torch.device("meta"):  # what is not said to be on the CPU
        again = call(BY_NAME[REPEATED[0]])
    assert all(x.equal(again[key]) for key, x in made[REPEATED[0]].items())
    check_dropout()
    check_other_sequences(rank)
    return made


def check_other_sequences(rank: int) -> None:
    """A rank with other sequences is named on every rank, before anything is exchanged."""
    case = replace(BY_NAME["empty ones"], lengths=[120, 0, 90] if rank else [0, 120, 90])
    with pytest.raises(
        ValueError, match=r"cu_seqlens is .*\(0, 120, 120, 210\).* on ranks? 1.* pass every rank the same"
    ):
        call(case)


def check_dropout() -> None:
    """Every rank draws as many random numbers, whatever it holds, and weights are dropped."""
    torch.manual_seed(0)
    for case in (BY_NAME["empty ones"], BY_NAME["one long sequence"]):
        kept = call(case)["out"]
        dropped = call(replace(case, dropout_p=0.5))["out"]
        assert not dropped.isclose(kept).all()
    state = torch.get_rng_state()
    states = [torch.empty_like(state) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(states, state)
    assert all(state.equal(other) for other in states)


def test_two_processes_give_the_results_of_one(two: GlooProcesses) -> None:
    of_ranks = two.run(all_calls, list(BY_NAME), limit=300)
    for case in CASES:
        check(case, [each[case.name] for each in of_ranks])


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [3, 4])
def test_more_processes_give_the_results_of_one(world_size: int) -> None:
    of_ranks = run_processes(world_size, all_calls, list(BY_NAME), limit=600)
    for case in CASES:
        check(case, [each[case.name] for each in of_ranks])


# ---- one process


def test_eight_ranks_give_the_results_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Replay(8, monkeypatch)
    for name in ("one long sequence, not causal", "many short ones"):
        check(BY_NAME[name], ranks.run(lambda name=name: local_call(BY_NAME[name], ranks.config)))


@pytest.fixture(scope="module")
def config() -> Iterator[DistributedSparseConfig]:
    with mesh_of_one() as mesh:
        yield DistributedSparseConfig(mesh)


@pytest.mark.parametrize("name", ["several, not causal", "softcap, sinks and lse"])
def test_one_process_is_the_plain_call(config: DistributedSparseConfig, name: str) -> None:
    case = BY_NAME[name]
    q, k, v, _, sinks = case.tensors()
    layout, cu, longest = case.layout(), torch.tensor(case.offsets(), dtype=torch.int32), max(case.lengths)
    sharding = PackedSharding.from_sequences(cu, layout, config)
    made = distributed_block_sparse_attention_varlen(
        q, k, v, layout, sharding, config, sinks=sinks, **case.options()
    )
    expected = block_sparse_attention_varlen(
        q, k, v, layout, cu, cu, longest, longest, sinks=sinks, **case.options()
    )
    assert made.equal(expected)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"q": torch.zeros(1, 50, 2, 16)}, ValueError, "a batch .* is for distributed_block_sparse_attention"),
        ({"k": torch.zeros(49, 2, 16)}, ValueError, r"k must have the 50 tokens .* shard_sequence\(k, sharding, dim=0\)"),
        ({"sharding": None}, TypeError, "sharding must be a PackedSharding"),
        ({"config": None}, TypeError, "config must be a DistributedSparseConfig"),
        ({"layout": None}, TypeError, "layout must be a BlockLayout"),
        ({"is_causal": False}, ValueError, "is_causal=False needs a layout made with causal=False"),
        ({"is_causal": 2}, TypeError, "is_causal"),
        ({"backend": "reference"}, ValueError, "compare with block_sparse_attention_varlen"),
        ({"backend": "none"}, ValueError, "backend"),
        ({"return_lse": "yes"}, TypeError, "return_lse"),
        ({"dilation_rates": [2]}, ValueError, "segment_lengths"),
        ({"layout": "short"}, ValueError, "covers 32 positions, but the longest sequence in cu_seqlens has 40"),
        ({"layout": "large blocks"}, ValueError, "block_size 32, but the sharding has 16"),
        ({"layout": "not square"}, ValueError, "layout must be square"),
        ({"sharding": "of two"}, ValueError, "sharding is that of rank 0 of 2, but this process is rank 0 of 1"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(
    config: DistributedSparseConfig, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    def layout(length: int, size: int = 16, kv_len: int | None = None) -> BlockLayout:
        return BlockLayout.from_config(SparsePatternConfig(block_size=size), length, kv_len, causal=True)

    q = k = v = torch.zeros(50, 2, 16)
    sharding = PackedSharding.from_sequences([0, 10, 50], layout(40), config)
    call = {"q": q, "k": k, "v": v, "layout": layout(40), "sharding": sharding, "config": config}
    named = {
        "short": layout(32), "large blocks": layout(64, 32), "not square": layout(40, 16, 48),
        "of two": PackedSharding((((0, 2),), ((2, 4),)), (0, 10, 50), 16, 0),
    }  # fmt: skip
    call |= {"is_causal": True}
    call |= {
        name: named.get(value, value) if isinstance(value, str) else value for name, value in change.items()
    }
    with pytest.raises(error, match=said):
        distributed_block_sparse_attention_varlen(**call)
