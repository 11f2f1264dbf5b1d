"""Attention of a distributed sequence to chosen blocks, beside a single process with all indices."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dilated_attention_pytorch import BlockLayout, block_scores, block_sparse_attention, select_blocks
from dilated_attention_pytorch.distributed.exchange import add_returned
from dilated_attention_pytorch.distributed.scores import distributed_block_scores
from dilated_attention_pytorch.distributed.selected import (
    distributed_attention_from_indices,
    distributed_attention_from_plan,
)
from dilated_attention_pytorch.distributed.selection_plan import plan_of_indices, serve
from dilated_attention_pytorch.distributed.sharding import shard_sequence
from dilated_attention_pytorch.distributed.slots import SlotTable
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo
from tests.core.distributed.selected_cases import (
    BLOCK,
    TOLERANCE,
    SelectedCase,
    Whole,
    dropped_by,
    largest_error,
    of_one_process,
    of_this_rank,
    part_of_rank,
    without_columns,
)

pytestmark = needs_gloo

CASES = {
    "causal": SelectedCase(causal=True),
    "causal_whole_blocks_contiguous": SelectedCase(causal=True, length=8 * BLOCK, balance="contiguous"),
    "not_causal": SelectedCase(causal=False),
    "not_causal_contiguous": SelectedCase(causal=False, balance="contiguous", stages=1),
    "whole_blocks": SelectedCase(causal=False, length=8 * BLOCK),
    "one_list_for_all": SelectedCase(causal=True, batch_of_indices=1, index_heads=1, k=5, stages=2),
    "lists_of_kv_heads": SelectedCase(causal=False, index_heads=2, with_counts=True),
    "counts_and_saved": SelectedCase(causal=True, with_counts=True, save_fetched=True, k=5),
    "bias_sinks_softcap": SelectedCase(causal=True, with_others=True),
    "bias_not_causal": SelectedCase(causal=False, with_others=True, stages=1),
    "capacity_1": SelectedCase(causal=False, capacity=1, k=6),
    "capacity_2_causal": SelectedCase(causal=True, capacity=2, k=6, with_counts=True),
    "capacity_2_one_stage": SelectedCase(causal=False, capacity=2, stages=1, with_others=True),
    "capacity_1_one_list": SelectedCase(causal=True, capacity=1, batch_of_indices=1, index_heads=1, k=5),
    "few_blocks": SelectedCase(causal=False, length=3 * BLOCK + 1, capacity=1),
    "few_blocks_causal": SelectedCase(causal=True, length=3 * BLOCK + 1),
}
MORE_RANKS = {name: replace(case, length=case.length + 8 * BLOCK) for name, case in CASES.items()}
MORE_RANKS |= {"block_a_rank": SelectedCase(causal=False, length=3 * BLOCK + 1)}


def compare(rank: int, cases: dict[str, SelectedCase]) -> dict[str, dict[str, Any]]:
    """What this rank gives for every case, and what it should."""
    made = {}
    for name, case in cases.items():
        config = case.config(dist.group.WORLD)
        whole = Whole.of(case)
        is_dropped = dropped_by(case, whole, config.world_size)
        one = of_one_process(case, whole, without_columns(whole, is_dropped))
        sharding = case.sharding(rank, config.world_size)
        wanted = part_of_rank(one, sharding)
        found, plan = of_this_rank(case, whole, config)
        again, _ = of_this_rank(case, whole, config)
        sinks = None
        if case.with_others:
            sinks = found["sinks"].clone()
            dist.all_reduce(sinks)
            wanted["sinks"], found["sinks"] = one["sinks"], sinks
            again["sinks"] = sinks
        rows = sharding.blocks_of(rank)
        made[name] = {
            "errors": largest_error(found, wanted),
            "repeats": all(torch.equal(found[key], again[key]) for key in found),
            "dropped": (int(plan.dropped), int(is_dropped[..., rows, :].sum())),
            "needed": plan.needed.tolist(),
        }
    return made


def check(made: list[dict[str, dict[str, Any]]]) -> None:
    for rank, of_rank in enumerate(made):
        for name, found in of_rank.items():
            where = f"{name} on rank {rank}: {found}"
            assert max(found["errors"].values()) < TOLERANCE, where
            assert found["repeats"], where
            assert found["dropped"][0] == found["dropped"][1], where


def test_two_ranks_give_what_one_process_gives(two: GlooProcesses) -> None:
    made = two.run(compare, CASES, limit=120)
    check(made)
    dropped = {name: sum(of_rank[name]["dropped"][0] for of_rank in made) for name in CASES}
    assert all((number > 0) == (CASES[name].capacity is not None) for name, number in dropped.items()), (
        dropped
    )


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [3, 4])
def test_more_ranks_give_what_one_process_gives(world_size: int) -> None:
    cases = MORE_RANKS if world_size == 4 else MORE_RANKS | CASES
    with GlooProcesses(world_size) as processes:
        check(processes.run(compare, cases, limit=240))


# ---- capacity


def with_capacities(rank: int, case: SelectedCase) -> list[tuple[int, int, float]]:
    """Of capacities that are just enough, and one less: the capacity, how many it drops, the error against all blocks."""
    whole = Whole.of(case)
    wanted = part_of_rank(of_one_process(case, whole, whole.indices), case.sharding(rank, 2))
    _, plan = of_this_rank(case, whole, case.config(dist.group.WORLD))
    most = plan.needed.max()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    made = []
    for capacity in (int(most), int(most) - 1):
        limited = replace(case, capacity=capacity)
        found, plan = of_this_rank(limited, whole, limited.config(dist.group.WORLD))
        made.append((capacity, int(plan.dropped), max(largest_error(found, wanted).values())))
    return made


def test_capacity_of_what_is_needed_drops_nothing(two: GlooProcesses) -> None:
    case = SelectedCase(
        causal=False, length=24 * BLOCK + 3, k=2, index_heads=2, stages=1, batch=1, batch_of_indices=1
    )
    made = two.run(with_capacities, case)
    for enough, _ in made:
        assert enough[1] == 0, made
        assert enough[2] < TOLERANCE, made
    assert sum(less[1] for _, less in made) > 0, made
    assert 1 < made[0][0][0] < 12, made  # fewer than a rank has


# ---- what nobody chose


def with_garbage(rank: int, causal: bool) -> tuple[bool, bool]:
    """Whether results are right where blocks that no list names hold nan, and whether these have no gradient."""
    case = SelectedCase(causal=causal, length=12 * BLOCK)
    whole = Whole.of(case)
    # The first block of each chunk, too: one that is sent for an empty slot.
    unnamed = torch.tensor([0, 3, 4, 6, 9])
    whole.indices[torch.isin(whole.indices, unnamed)] = -1
    wanted = part_of_rank(of_one_process(case, whole, whole.indices), case.sharding(rank, 2))
    tokens = (unnamed[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    whole.k[:, tokens], whole.v[:, tokens] = torch.nan, torch.inf
    found, _ = of_this_rank(case, whole, case.config(dist.group.WORLD))
    positions = case.sharding(rank, 2).positions()
    is_unnamed = torch.isin(positions, tokens)
    has_none = all(bool((found[name][:, is_unnamed] == 0).all()) for name in ("k", "v"))
    return max(largest_error(found, wanted).values()) < TOLERANCE, has_none


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_that_no_list_names_reach_no_result(two: GlooProcesses, causal: bool) -> None:
    assert two.run(with_garbage, causal) == [(True, True)] * 2


# ---- scores, choice, attention


def from_scores(rank: int, causal: bool, softmax_scale: float | None) -> dict[str, Any]:
    """Scores, gradients of scores, chosen blocks and attention of this rank beside a single process."""
    case = SelectedCase(causal=causal)
    whole, config = Whole.of(case), case.config(dist.group.WORLD)
    sharding = case.sharding(rank, 2)
    rows = sharding.blocks_of(rank)
    q, k = (x.clone().requires_grad_() for x in (whole.q, whole.k))
    scores = block_scores(q, k, BLOCK, causal=causal, softmax_scale=softmax_scale)
    weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    seen = scores > -torch.inf
    grads = torch.autograd.grad((scores.where(seen, 0) * weight).sum(), (q, k))
    my_q, my_k, my_v = (
        shard_sequence(x.detach(), sharding).clone().requires_grad_() for x in (q, k, whole.v)
    )
    mine = distributed_block_scores(my_q, my_k, sharding, config, causal=causal, softmax_scale=softmax_scale)
    my_grads = torch.autograd.grad((mine.where(seen[:, :, rows], 0) * weight[:, :, rows]).sum(), (my_q, my_k))
    wanted = {"scores": scores[:, :, rows], **{n: shard_sequence(x, sharding) for n, x in zip("qk", grads)}}
    found = {"scores": mine, **dict(zip("qk", my_grads))}

    options = {"num_blocks": 4, "window": 1, "causal": causal}
    indices, counts = select_blocks(scores, **options)
    my_indices, my_counts = select_blocks(mine, **options, diagonal=sharding.block_rows())
    layout = BlockLayout.from_indices(
        indices, counts, q_len=case.length, kv_len=case.length, block_size=BLOCK, causal=causal
    )
    out = block_sparse_attention(whole.q, whole.k, whole.v, layout, is_causal=causal)
    wanted["out"] = shard_sequence(out, sharding)
    found["out"] = distributed_attention_from_indices(
        my_q, my_k, my_v, my_indices, sharding, config, counts=my_counts, is_causal=causal
    )
    return {
        "errors": largest_error(found, wanted),
        "indices": torch.equal(my_indices, indices[:, :, rows])
        and torch.equal(my_counts, counts[:, :, rows]),
    }


@pytest.mark.parametrize(("causal", "softmax_scale"), [(True, None), (False, 0.3)])
def test_scores_and_choice_are_the_rows_of_a_single_process(
    two: GlooProcesses, causal: bool, softmax_scale: float | None
) -> None:
    for found in two.run(from_scores, causal, softmax_scale):
        assert max(found["errors"].values()) < TOLERANCE, found
        assert found["indices"]


# ---- one rank, several layers, errors


def alone(rank: int) -> dict[str, Any]:
    """A group of one rank."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    case = SelectedCase(causal=True, with_others=True)
    whole = Whole.of(case)
    found, plan = of_this_rank(case, whole, case.config(groups[rank]))
    q, k = whole.q, whole.k
    sharding = case.sharding(0, 1)
    scores = distributed_block_scores(q, k, sharding, case.config(groups[rank]), causal=True)
    return {
        "errors": largest_error(found, of_one_process(case, whole, whole.indices)),
        "plan": (plan.dropped.item(), plan.needed.tolist()),
        "scores": torch.equal(scores, block_scores(q, k, BLOCK, causal=True)),
    }


def test_one_rank_exchanges_nothing(two: GlooProcesses) -> None:
    for found in two.run(alone):
        assert max(found["errors"].values()) == 0, found
        assert found["plan"] == (0, [[0]])
        assert found["scores"]


def of_layers(rank: int) -> list[float]:
    """Two layers with one plan, each with its own q, k and v; without gradients, and in half precision the second."""
    case = SelectedCase(causal=True)
    config, sharding = case.config(dist.group.WORLD), case.sharding(rank, 2)
    rows, errors = sharding.blocks_of(rank), []
    plan = None
    for seed, dtype in ((0, torch.float32), (1, torch.bfloat16)):
        whole = Whole.of(replace(case, seed=seed))
        whole.indices = Whole.of(case).indices
        mine = [shard_sequence(x, sharding).to(dtype) for x in (whole.q, whole.k, whole.v)]
        with torch.inference_mode():
            if plan is None:
                plan = plan_of_indices(
                    *mine[:2], whole.indices[..., rows, :], sharding, config, is_causal=True
                )
            out = distributed_attention_from_plan(*mine, plan)
        wanted = part_of_rank(of_one_process(case, whole, whole.indices), sharding)["out"]
        errors.append(largest_error({"out": out.float()}, {"out": wanted})["out"])
    return errors


def test_layers_share_a_plan(two: GlooProcesses) -> None:
    for full, half in two.run(of_layers):
        assert full < TOLERANCE
        assert half < 2**-6  # bfloat16 has 8 bits: of q, k, v, the weights and the result


OTHER_CALLS = ("heads of indices", "capacity", "softmax_scale", "head_dim")


def of_other_calls(rank: int, what: str) -> str:
    """What a rank is told where the ranks make different calls, which none has made before."""
    length = (20 + OTHER_CALLS.index(what)) * BLOCK
    case = SelectedCase(causal=True, length=length, capacity=2 + rank if what == "capacity" else None)
    config, sharding = case.config(dist.group.WORLD), case.sharding(rank, 2)
    whole = Whole.of(case)
    q, k, v = (shard_sequence(x, sharding) for x in (whole.q, whole.k, whole.v))
    indices = whole.indices[..., sharding.blocks_of(rank), :]
    if what == "heads of indices" and rank == 1:
        indices = indices[:, :1]
    scale = 0.5 if what == "softmax_scale" and rank == 1 else None
    dim = 16 - 8 * rank
    call = {
        "head_dim": lambda: distributed_block_scores(q[..., :dim], k[..., :dim], sharding, config),
    }.get(
        what,
        lambda: distributed_attention_from_indices(
            q, k, v, indices, sharding, config, is_causal=True, softmax_scale=scale
        ),
    )
    with pytest.raises(ValueError, match="rank") as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("what", OTHER_CALLS)
def test_ranks_that_make_different_calls_are_all_told(two: GlooProcesses, what: str) -> None:
    told = two.run(of_other_calls, what)
    assert told[0] == told[1]
    assert what in told[0]


def of_a_step(rank: int) -> bool:
    """Whether anything that a step has made for its blocks is left after it, without the garbage collector."""
    case = SelectedCase(causal=True)
    gc.collect()
    gc.disable()
    try:
        _, plan = of_this_rank(case, Whole.of(case), case.config(dist.group.WORLD))
        left = [weakref.ref(stage.local.layout) for stage in plan.stages]
        del plan
        return any(each() is not None for each in left)
    finally:
        gc.enable()


def test_nothing_of_a_step_is_kept(two: GlooProcesses) -> None:
    assert two.run(of_a_step) == [False, False]


def messages(rank: int) -> dict[str, str]:
    """What wrong arguments are answered with; every rank gives the same, so none waits for another."""
    case = SelectedCase(causal=True)
    config, sharding = case.config(dist.group.WORLD), case.sharding(rank, 2)
    whole = Whole.of(case)
    q, k, v = (shard_sequence(x, sharding) for x in (whole.q, whole.k, whole.v))
    indices = whole.indices[..., sharding.blocks_of(rank), :]
    plan = plan_of_indices(q, k, indices, sharding, config, is_causal=True)
    calls = {
        "rows": lambda: plan_of_indices(q, k, whole.indices, sharding, config),
        "type": lambda: plan_of_indices(q, k, indices.float(), sharding, config),
        "heads": lambda: plan_of_indices(q, k, indices[:, :3], sharding, config),
        "batch": lambda: plan_of_indices(q, k, indices.repeat(2, 1, 1, 1), sharding, config),
        "tokens": lambda: plan_of_indices(q[:, 1:], k[:, 1:], indices, sharding, config),
        "causal": lambda: plan_of_indices(q, k, indices, sharding, config, is_causal=None),
        "config": lambda: plan_of_indices(q, k, indices, sharding, None),
        "rank": lambda: plan_of_indices(q, k, indices, case.sharding(1 - rank, 2), config),
        "plan": lambda: distributed_attention_from_plan(q, k, v, indices),
        "other plan": lambda: distributed_attention_from_plan(q[:1], k[:1], v[:1], plan),
        "backend": lambda: distributed_attention_from_plan(q, k, v, plan, backend="reference"),
        "bias": lambda: distributed_attention_from_plan(q, k, v, plan, block_bias=torch.zeros(1, 1, 7)),
        "scale": lambda: distributed_block_scores(q, k, sharding, config, softmax_scale="1"),
        "scores": lambda: distributed_block_scores(q[:, 1:], k[:, 1:], sharding, config),
        "flag": lambda: distributed_block_scores(q, k, sharding, config, causal=2),
    }
    said = {}
    for name, call in calls.items():
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        said[name] = str(error.value)
    return said


MESSAGES = {
    "rows": "n_rows 5",
    "type": "indices must be int32 or int64",
    "heads": "must have 1 head, num_kv_heads 2 or num_heads 4, got 3",
    "batch": "indices must have batch 1 or 2",
    "tokens": "use shard_sequence(q, sharding)",
    "causal": "is_causal must be True or False",
    "config": "config must be a DistributedSparseConfig",
    "rank": "but this process is rank",
    "flag": "causal must be True or False, got 2",
    "plan": "plan must be a SelectionPlan, made by plan_of_indices",
    "other plan": "plan is for (batch, num_heads, num_kv_heads) (2, 4, 2)",
    "backend": "backend='reference'",
    "bias": "block_bias must be broadcastable to (batch, num_heads, 120)",
    "scale": "softmax_scale must be a finite number",
    "scores": "use shard_sequence(q, sharding)",
}


def test_errors_name_the_argument(two: GlooProcesses) -> None:
    for said in two.run(messages):
        assert said.keys() == MESSAGES.keys()
        for name, part in MESSAGES.items():
            assert part in said[name], (name, said[name])


# ---- the kernel


@pytest.mark.interpreter
def test_gradients_of_empty_slots_are_not_added_on_a_gpu_either() -> None:
    from dilated_attention_pytorch.distributed.device_exchange import launch_add_returned

    case = SelectedCase(causal=False, length=5 * BLOCK + 3, balance="contiguous")
    sharding = case.sharding(2, 3)
    table = SlotTable.of(sharding, 1, False, torch.device("cpu"))
    assert table.sent_slots == (2, 2, 0)  # a whole block and the short one for each
    received = torch.tensor([[0], [-1], [-1], [1]], dtype=torch.int32)
    _, (where,) = serve(received, table, sharding)
    own = torch.randn(2, sharding.local_len, 2, 8)
    returned = torch.randn(2, int(table.sent_slot.numel()), 2, 8)
    returned[:, BLOCK : 2 * BLOCK + 3] = torch.nan  # of the empty slots
    wanted = own.clone()
    wanted[:, :BLOCK] += returned[:, :BLOCK]
    wanted[:, BLOCK:] += returned[:, 2 * BLOCK + 3 :]
    for add in (launch_add_returned, add_returned):
        into = torch.empty_like(own)
        add(own, returned, where, into)
        assert torch.equal(into, wanted)


# ---- tables


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("capacity", [None, 2])
@pytest.mark.parametrize("length", [12 * BLOCK, 12 * BLOCK + 1])
def test_what_a_rank_sends_another_receives(causal: bool, capacity: int | None, length: int) -> None:
    case = SelectedCase(causal=causal, length=length)
    tables = [
        SlotTable.of(case.sharding(rank, 4), capacity, causal, torch.device("cpu")) for rank in range(4)
    ]
    for rank, table in enumerate(tables):
        assert table.fetched_slots == tuple(other.sent_slots[rank] for other in tables)
        assert table.transfers.fetched_tokens == tuple(other.transfers.sent_tokens[rank] for other in tables)
        assert table.fetched_slots[rank] == 0
        assert table.own_at % BLOCK == table.fetched_at % BLOCK == 0
        if capacity is not None:
            assert max(table.fetched_slots) <= capacity + 1
    assert len({table.mean_slots for table in tables}) == 1


def test_causal_ranks_get_nothing_from_later_ones() -> None:
    case = SelectedCase(causal=True, length=12 * BLOCK, balance="contiguous")
    tables = [SlotTable.of(case.sharding(rank, 3), None, True, torch.device("cpu")) for rank in range(3)]
    assert [table.fetched_slots for table in tables] == [(0, 0, 0), (4, 0, 0), (4, 4, 0)]
