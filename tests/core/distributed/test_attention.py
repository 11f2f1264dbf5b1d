"""Distributed attention of a known layout gives what a single process gives, and moves what the plan says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    DistributedSparseConfig,
    SequenceSharding,
    SparsePatternConfig,
    block_sparse_attention,
    distributed_block_sparse_attention,
    shard_sequence,
)
from dilated_attention_pytorch.distributed.default_shardings import check_one_choice
from dilated_attention_pytorch.distributed.local_layout import first_of_run
from dilated_attention_pytorch.distributed.plan import ExchangePlan
from tests.core.distributed.attention_grid import (
    BLOCK,
    CASES,
    DILATED,
    TOLERANCE,
    Case,
    Inputs,
    of_one_process,
    of_this_rank,
    part_of,
    relative_error,
)
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo
from tests.core.distributed.one_process import mesh_of_one

pytestmark = needs_gloo


def compare(rank: int, cases: dict[str, Case]) -> dict[str, tuple[float, bool]]:
    """The largest error of every case, and whether a second run gives the same bits."""
    made = {}
    for name, case in cases.items():
        layout = case.layout()
        whole = Inputs.of(case, layout)
        sharding, found = of_this_rank(case, layout, whole)
        wanted = part_of(of_one_process(case, layout, whole), sharding)
        again = of_this_rank(case, layout, whole)[1]
        errors = [relative_error(x, y) for x, y in zip(found, wanted, strict=True)]
        made[name] = max(errors), all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    return made


def check_all(results: list[dict[str, tuple[float, bool]]], cases: dict[str, Case]) -> None:
    for rank, of_rank in enumerate(results):
        assert of_rank.keys() == cases.keys()
        wrong = {name: its for name, its in of_rank.items() if not its[0] < TOLERANCE or not its[1]}
        assert not wrong, f"rank {rank}: (relative error, bit-equal) {wrong}"


def test_two_processes_give_what_one_gives(two: GlooProcesses) -> None:
    check_all(two.run(compare, CASES, limit=300), CASES)


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [3, 4, 8])
def test_more_processes_give_what_one_gives(world_size: int) -> None:
    more = {name: replace(case, length=case.length + 16 * BLOCK) for name, case in CASES.items()}
    more |= {
        f"a_block_a_rank_{causal}": Case(length=(world_size - 1) * BLOCK + 3, causal=causal)
        for causal in (True, False)
    }
    with GlooProcesses(world_size) as processes:
        check_all(processes.run(compare, more, limit=600), more)


# ---- bytes


def bytes_sent(rank: int, cases: dict[str, Case]) -> dict[str, tuple[int, int]]:
    """For every case the bytes that this rank gives to all-to-alls in a forward and backward, and what its plan says."""
    made = {}
    for name, case in cases.items():
        layout = case.layout()
        whole = Inputs.of(case, layout)
        with patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as exchanges:
            sharding, _ = of_this_rank(case, layout, whole)
        sent = []
        for _, given, _, of_given in (call.args for call in exchanges.call_args_list):
            assert of_given[rank] == 0  # nothing goes to itself
            assert sum(of_given) == given.shape[0]
            sent.append(given.numel() * given.element_size())
        plan = ExchangePlan.make(layout, sharding, case.causal)
        of_token = 2 * case.heads[1] * sum(case.dims) * 4  # batch 2, float32
        fetches = 1 if case.save_fetched else 2
        made[name] = sum(sent), of_token * (fetches * plan.num_sent_tokens + plan.num_fetched_tokens)
    return made


def test_bytes_that_are_sent_are_those_of_the_plan(two: GlooProcesses) -> None:
    names = (
        "causal",
        "kept",
        "not_causal_contiguous",
        "other_v_dim",
        "local",
        "random",
        "documents",
        "no_exchange",
    )
    for of_rank in two.run(bytes_sent, {name: CASES[name] for name in names}, limit=120):
        for name, (sent, planned) in of_rank.items():
            assert sent == planned, name
            assert (sent == 0) == (name == "no_exchange")


def test_one_percent_on_8_ranks_moves_under_a_quarter_of_what_ring_attention_moves() -> None:
    config = SparsePatternConfig(sparsity_ratio=0.01, block_size=128)
    layout = BlockLayout.from_config(config, 131_072, causal=True)
    chunks = sharding_of(layout, "cost", 0, 8).chunks
    plans = [
        ExchangePlan.make(layout, SequenceSharding.make(chunks, 131_072, 128, rank), True)
        for rank in range(8)
    ]
    ring = 7 * 131_072  # tokens that all ranks send: each passes on seven of the eight shards
    assert sum(plan.num_sent_tokens for plan in plans) < 0.2 * ring
    assert sum(plan.num_fetched_tokens for plan in plans) == sum(plan.num_sent_tokens for plan in plans)


def sharding_of(layout: BlockLayout, balance: str, rank: int, world_size: int) -> SequenceSharding:
    from dilated_attention_pytorch.distributed.balance import chunks_of, row_costs

    chunks = chunks_of(balance, row_costs(layout), world_size)
    return SequenceSharding.make(chunks, layout.q_len, layout.block_size, rank)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("balance", ["cost", "zigzag", "contiguous"])
def test_every_plan_fetches_exactly_what_its_rows_name(causal: bool, balance: str) -> None:
    layout = BlockLayout.from_config(DILATED, 40 * BLOCK + 3, causal=causal)
    rows = layout.rows()
    shardings = [sharding_of(layout, balance, rank, 5) for rank in range(5)]
    plans = [ExchangePlan.make(layout, sharding) for sharding in shardings]
    for sharding, plan in zip(shardings, plans, strict=True):
        own = set(sharding.blocks_of(plan.rank).tolist())
        named = {col for row in own for col in rows[row]} - own
        assert set(plan.fetched.tolist()) == named
        assert plan.fetched.numel() == len(named)
        for other in plans:
            assert other.sent_tokens[plan.rank] == plan.fetched_tokens[other.rank]


def test_tokens_that_follow_one_another_are_sent_from_where_they_are() -> None:
    assert first_of_run(torch.arange(5, 9)) == 5
    assert first_of_run(torch.tensor([3])) == 3
    for other in ([1, 3], [2, 2], [1, 0], []):
        assert first_of_run(torch.tensor(other, dtype=torch.int64)) is None


# ---- calls


def calls(rank: int) -> None:
    """What else a call must do, in both processes."""
    config = DistributedSparseConfig(dist.group.WORLD)
    length = 20 * BLOCK
    layout = BlockLayout.from_config(DILATED, length, causal=True)
    sharding = SequenceSharding.from_layout(layout, config)
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
    mine = [shard_sequence(x, sharding) for x in (q, k, v)]

    # dropout: the mean over many draws is the attention, and two layers do not drop alike
    options: dict[str, Any] = {"is_causal": True, "dropout_p": 0.5}
    draws = [
        distributed_block_sparse_attention(*mine, layout, sharding, config, **options) for _ in range(200)
    ]
    exact = distributed_block_sparse_attention(*mine, layout, sharding, config, is_causal=True)
    assert not torch.equal(draws[0], draws[1])
    # the standard deviation of one draw is that of v / sqrt(keys that count), about 1 at the most
    assert (torch.stack(draws).mean(0) - exact).abs().mean() < 3 / 200**0.5

    # gradients of a call with dropout are those of its forward: numbers that are linear in v
    leaf = mine[2].clone().requires_grad_()
    torch.manual_seed(5)
    out = distributed_block_sparse_attention(mine[0], mine[1], leaf, layout, sharding, config, **options)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    total, dot = out.sum().detach(), (grad * leaf).sum().detach()
    dist.all_reduce(total)
    dist.all_reduce(dot)
    torch.testing.assert_close(total, dot, rtol=1e-4, atol=1e-3)

    # only v needs a gradient, and only lse is used
    leaf = mine[0].clone().requires_grad_()
    lse = distributed_block_sparse_attention(
        leaf, mine[1], mine[2], layout, sharding, config, is_causal=True, return_lse=True
    )[1]
    lse.sum().backward()
    whole = q.clone().requires_grad_()
    block_sparse_attention(whole, k, v, layout, is_causal=True, return_lse=True)[1].sum().backward()
    torch.testing.assert_close(leaf.grad, shard_sequence(whole.grad, sharding))

    # a second derivative says so
    leaf = mine[0].clone().requires_grad_()
    out = distributed_block_sparse_attention(leaf, *mine[1:], layout, sharding, config, is_causal=True)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiated twice"):
        grad.sum().backward()

    # half precision, and inputs that are views, expanded or laid out by heads
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given = [x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in mine]
        out = distributed_block_sparse_attention(*given, layout, sharding, config, is_causal=True)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), exact, rtol=2e-2, atol=2e-2)
    one_head = mine[1][:, :, :1].expand(-1, -1, 2, -1).detach().requires_grad_()
    out = distributed_block_sparse_attention(
        mine[0], one_head, mine[2], layout, sharding, config, is_causal=True
    )
    out.sum().backward()
    assert one_head.grad is not None
    assert one_head.grad.isfinite().all()

    # autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert distributed_block_sparse_attention(
            *mine, layout, sharding, config, is_causal=True
        ).dtype == torch.bfloat16  # fmt: skip

    # the module: any length, by its own sharding or a given one
    config_of_module = DistributedSparseConfig(dist.group.WORLD, balance="zigzag")
    module, base = BlockSparseDistributedAttention(DILATED, config_of_module), BlockSparseAttention(DILATED)
    for length in (20 * BLOCK, 20 * BLOCK + 7):
        q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
        its = module.sharding(length, True)
        assert its is module.sharding(length, True)
        mine = [shard_sequence(x, its) for x in (q, k, v)]
        wanted = shard_sequence(base(q, k, v, is_causal=True), its)
        torch.testing.assert_close(module(*mine, is_causal=True, seq_len=length), wanted)
        torch.testing.assert_close(module(*mine, is_causal=True, sharding=its), wanted)


def test_calls_of_two_processes(two: GlooProcesses) -> None:
    two.run(calls, limit=300)


@pytest.fixture(scope="module")
def alone() -> Iterator[DistributedSparseConfig]:
    with mesh_of_one() as mesh:
        yield DistributedSparseConfig(mesh)


def test_one_process_calls_the_base_module(alone: DistributedSparseConfig) -> None:
    module, base = BlockSparseDistributedAttention(DILATED, alone), BlockSparseAttention(DILATED)
    q, k, v = (torch.randn(2, 333, 2, 16) for _ in range(3))
    assert torch.equal(module(q, k, v, is_causal=True), base(q, k, v, is_causal=True))
    assert torch.equal(module.sharding(333).positions(), torch.arange(333))


def test_layers_that_would_take_ranks_to_hold_other_tokens_say_so(alone: DistributedSparseConfig) -> None:
    def sharding_of_two(first: int) -> SequenceSharding:
        chunks = (((0, first),), ((first, 4),))
        return SequenceSharding.make(chunks, 64, BLOCK, 0)

    group = alone.group
    one, other = (BlockSparseDistributedAttention(DILATED, alone) for _ in range(2))
    check_one_choice(group, one, sharding_of_two(1))
    check_one_choice(group, other, sharding_of_two(1))
    check_one_choice(group, one, sharding_of_two(1))
    with pytest.raises(
        ValueError, match="sharding is missing: this layer would take the ranks to hold other tokens"
    ):
        check_one_choice(group, other, sharding_of_two(2))
    del one, other
    gc.collect()  # layers that are gone have no say
    check_one_choice(group, BlockSparseDistributedAttention(DILATED, alone), sharding_of_two(2))


BAD = {
    "layout must be a BlockLayout": {"layout": None},
    "sharding must be a SequenceSharding": {"sharding": 3},
    "config must be a DistributedSparseConfig": {"config": {}},
    "backend='reference' is the dense definition": {"backend": "reference"},
    "q must have the 64 tokens that rank 0 of 1 holds": {"q": torch.randn(1, 63, 2, 16)},
    "layout has block_size 32": {
        "layout": BlockLayout.from_config(SparsePatternConfig(block_size=32, sparsity_ratio=0.3), 64)
    },
    "layout must be square, for the 64 tokens": {"layout": BlockLayout.from_config(DILATED, 48)},
    "softmax_scale must be": {"softmax_scale": "x"},
    "return_lse must be": {"return_lse": "yes"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str, alone: DistributedSparseConfig) -> None:
    layout = BlockLayout.from_config(DILATED, 64)
    given: dict[str, Any] = {
        "q": torch.randn(1, 64, 2, 16), "k": torch.randn(1, 64, 2, 16), "v": torch.randn(1, 64, 2, 16),
        "layout": layout, "sharding": SequenceSharding.from_layout(layout, alone), "config": alone,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        distributed_block_sparse_attention(**{**given, **BAD[message]})
