"""The plans and local layouts of packed sequences: the exchange is done here, in one process, for every rank of a group."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention_varlen
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.distributed.balance import Chunks
from dilated_attention_pytorch.distributed.packed_sharding import PackedSharding, n_blocks_of
from dilated_attention_pytorch.distributed.stages import Shape
from dilated_attention_pytorch.distributed.varlen import PackedPlan, make_plan

# float32 rounds to 6e-8; sums over a few hundred keys and the exponential of the scores lose two more digits.
FLOAT32 = 2e-5
SIZE = 16


def random_chunks(n_blocks: int, world_size: int, rng: random.Random) -> Chunks:
    """Any chunks: ranges of blocks for ranks drawn at random, each of which has at least one; the last has the last block."""
    n_cuts = min(n_blocks - 1, rng.randint(world_size - 1, 3 * world_size))
    bounds = [0, *sorted(rng.sample(range(1, n_blocks), n_cuts)), n_blocks]
    ranks = list(range(world_size - 1)) + [rng.randrange(world_size) for _ in range(n_cuts - world_size + 1)]
    rng.shuffle(ranks)
    chunks: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
    for rank, first, stop in zip([*ranks, world_size - 1], bounds, bounds[1:], strict=False):
        mine = chunks[rank]
        if mine and mine[-1][1] == first:
            mine[-1] = (mine[-1][0], stop)
        else:
            mine.append((first, stop))
    return tuple(map(tuple, chunks))


def random_lengths(rng: random.Random, world_size: int) -> list[int]:
    lengths = [
        rng.choice([0, 1, rng.randint(2, 15), 16, 17, rng.randint(20, 150)]) for _ in range(rng.randint(1, 9))
    ]
    while n_blocks_of([0, *torch.tensor(lengths).cumsum(0).tolist()], SIZE) < 2 * world_size:
        lengths.insert(rng.randrange(len(lengths) + 1), rng.randint(1, 100))
    return lengths


def tokens_of(sharding: PackedSharding, blocks: Tensor) -> Tensor:
    """The tokens of these blocks in the stream, by the definition."""
    found = []
    for block in blocks.tolist():
        start = int(sharding.blocks.start[block])
        found += range(start, start + int(sharding.blocks.tokens[block]))
    return torch.tensor(found, dtype=torch.int64)


def attend_split(
    x: tuple[Tensor, Tensor, Tensor], sharding: PackedSharding, plan: PackedPlan, shape: Shape
) -> Tensor:
    """What a rank computes for its parts of split sequences, with the blocks that it would fetch."""
    q, k, v = x
    own = plan.tokens(sharding.indices(), True, 0)
    (stage,) = plan.stages
    local = stage.local
    buffer = torch.cat([tokens_of(sharding, stage.plan.fetched), own])
    assert (local.fetched_at, local.own_at, local.num_tokens) == (
        0,
        buffer.numel() - own.numel(),
        buffer.numel(),
    )
    assert local.pieces is not None
    if local.pieces.order is not None:
        arranged = buffer[local.pieces.order]
        assert arranged[local.pieces.back].equal(buffer)
        buffer = arranged
    dilation = {}
    if shape.dilation is not None:
        dilation = {
            "segment_lengths": shape.dilation.segment_lengths,
            "dilation_rates": shape.dilation.dilation_rates,
        }
    return block_sparse_attention_varlen(
        q[own],
        k[buffer],
        v[buffer],
        local.layout,
        *local.pieces.offsets,
        is_causal=shape.is_causal,
        **dilation,
    )


@pytest.mark.parametrize("seed", range(8))
def test_parts_of_random_shardings_give_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    world_size, is_causal = rng.randint(2, 5), rng.random() < 0.5
    lengths = random_lengths(rng, world_size)
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    heads = rng.choice([1, 1, 2, 4])
    configs = [SparsePatternConfig(sparsity_ratio=0.2 + 0.1 * i, block_size=SIZE) for i in range(heads)]
    layout = BlockLayout.from_config(
        configs if heads > 1 else configs[0],
        max(lengths) + rng.choice([0, 40]),
        causal=is_causal and rng.random() < 0.7,
    )
    dilation = TokenDilation((32, 64), (1, 2)) if rng.random() < 0.3 else None
    chunks = random_chunks(n_blocks_of(offsets, SIZE), world_size, rng)
    total = offsets[-1]
    q, k, v = torch.randn(total, 4, 16), torch.randn(total, 2, 16), torch.randn(total, 2, 16)
    cu = torch.tensor(offsets, dtype=torch.int32)
    options = {} if dilation is None else {"segment_lengths": (32, 64), "dilation_rates": (1, 2)}
    expected = block_sparse_attention_varlen(
        q, k, v, layout, cu, cu, max(lengths), max(lengths), is_causal=is_causal, **options
    )
    made, plans = torch.full_like(q, torch.nan), []
    for rank in range(world_size):
        sharding = PackedSharding(chunks, tuple(offsets), SIZE, rank)
        shape = Shape(sharding, is_causal, 4, 2, dilation, torch.device("cpu"), 1, 1)
        plan = make_plan(layout, sharding, shape)
        plans.append(plan)
        if plan.stages:
            made[plan.tokens(sharding.indices(), True, 0)] = attend_split((q, k, v), sharding, plan, shape)
        of_whole = plan.tokens(sharding.indices(), False, 0)
        made[of_whole] = block_sparse_attention_varlen(
            q[of_whole], k[of_whole], v[of_whole], layout, *plan.whole.offsets, is_causal=is_causal, **options
        )
    torch.testing.assert_close(made, expected, rtol=FLOAT32, atol=FLOAT32 * float(expected.abs().max()))
    if plans[0].stages:
        check_transfers(PackedSharding(chunks, tuple(offsets), SIZE, 0), plans)


def check_transfers(sharding: PackedSharding, plans: list[PackedPlan]) -> None:
    """What a rank sends is what the others fetch of it, and returned gradients meet the tokens that were sent."""
    of_ranks = [plan.stages[0] for plan in plans]
    world_size = len(plans)
    for sender in range(world_size):
        mine = PackedSharding(sharding.chunks, sharding.cu_seqlens, SIZE, sender)
        own = plans[sender].tokens(mine.indices(), True, 0)
        plan, local = of_ranks[sender].plan, of_ranks[sender].local
        parts = own[local.sent].split(plan.sent_tokens)
        for receiver in range(world_size):
            fetched = tokens_of(sharding, of_ranks[receiver].plan.fetched)
            assert parts[receiver].equal(fetched.split(of_ranks[receiver].plan.fetched_tokens)[sender])
        returned = local.returned
        assert returned.tokens.equal(local.sent)
        assert returned.by_rank == plan.sent_tokens
        sizes = returned.own_starts.diff()
        for block, (first, stop) in enumerate(zip(returned.indptr[:-1], returned.indptr[1:], strict=True)):
            starts = returned.starts[first:stop].tolist()
            assert starts == sorted(starts)
            for start in starts:
                tokens = local.sent[start : start + int(sizes[block])]
                assert tokens.equal(torch.arange(returned.own_starts[block], returned.own_starts[block + 1]))


def test_only_split_sequences_travel() -> None:
    layout = BlockLayout.from_config(
        SparsePatternConfig(sparsity_ratio=0.5, block_size=SIZE), 64, causal=True
    )
    sharding = PackedSharding((((0, 8),), ((8, 16),)), (0, 64, 128, 192, 256), SIZE, 0)
    shape = Shape(sharding, True, 2, 2, None, torch.device("cpu"), None, 1)
    plan = make_plan(layout, sharding, shape)
    assert plan.stages == ()
    assert plan.runs == ((False, 128),)
    cut = PackedSharding((((0, 7),), ((7, 16),)), (0, 64, 128, 192, 256), SIZE, 0)
    plan = make_plan(layout, cut, shape)
    assert plan.runs == ((False, 64), (True, 48))
    assert all(stage.plan.num_sent_tokens <= 48 for stage in plan.stages)
