"""Tokens of a sequence on their ranks: positions, slices, and the whole again."""

from __future__ import annotations

import pickle
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.distributed.balance import chunks_of, row_costs
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from dilated_attention_pytorch.distributed.sharding import (
    SequenceSharding,
    shard_sequence,
)
from dilated_attention_pytorch.distributed.unshard import unshard_sequence
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo
from tests.core.distributed.one_process import config_of_rank, mesh_of_one

CHUNKS = (((2, 4),), ((0, 2), (4, 7)))
LENGTH = 16 * 7 - 5


def sharding_of(rank: int) -> SequenceSharding:
    return SequenceSharding.make(CHUNKS, LENGTH, 16, rank)


def layout_of(length: int, block_size: int = 16, ratio: float = 0.3, causal: bool = True) -> BlockLayout:
    return BlockLayout.from_config(
        SparsePatternConfig(block_size=block_size, sparsity_ratio=ratio), length, causal=causal
    )


# ---- which tokens


def test_positions_are_those_of_the_chunks() -> None:
    first, last = sharding_of(0), sharding_of(1)
    assert first.positions().tolist() == list(range(32, 64))
    assert last.positions().tolist() == [*range(32), *range(64, LENGTH)]
    assert first.positions().dtype == torch.int64
    assert (first.local_len, last.local_len) == (32, LENGTH - 32)
    assert first.local_lens == last.local_lens == (32, LENGTH - 32)


def test_positions_are_made_once() -> None:
    sharding = sharding_of(0)
    assert sharding.positions() is sharding.positions("cpu")


def test_blocks_know_their_ranks() -> None:
    sharding = sharding_of(0)
    assert sharding.rank_of_block().tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert sharding.blocks_of(0).tolist() == [2, 3]
    assert sharding.blocks_of(1).tolist() == [0, 1, 4, 5, 6]
    assert sharding.n_blocks == 7


def test_equal_shardings_are_equal_and_hash_alike() -> None:
    assert sharding_of(0) == sharding_of(0)
    assert hash(sharding_of(0)) == hash(sharding_of(0))
    assert sharding_of(0) != sharding_of(1)
    sharding_of(0).positions()
    copy = pickle.loads(pickle.dumps(sharding_of(1)))
    assert copy == sharding_of(1)
    assert hash(copy) == hash(sharding_of(1))


@pytest.mark.parametrize("balance", ["cost", "zigzag", "contiguous"])
def test_shardings_of_a_layout_are_alike_on_every_rank(balance: str) -> None:
    layout = layout_of(16 * 40 - 3)
    shardings = [SequenceSharding.from_layout(layout, config_of_rank(rank, 3, balance)) for rank in range(3)]
    assert len({sharding.chunks for sharding in shardings}) == 1
    assert shardings[0].chunks == chunks_of(balance, row_costs(layout), 3)
    positions = torch.cat([sharding.positions() for sharding in shardings])
    assert positions.sort().values.tolist() == list(range(16 * 40 - 3))
    assert max(shardings[0].local_lens) - min(shardings[0].local_lens) <= 16


def test_several_layouts_are_balanced_together() -> None:
    layouts = [layout_of(640, ratio=0.5), layout_of(640, ratio=0.1, causal=False)]
    sharding = SequenceSharding.from_layout(layouts, config_of_rank(0, 4))
    assert sharding.chunks == chunks_of("cost", row_costs(layouts), 4)
    assert 0 <= sharding.imbalance(layouts) <= 0.03
    assert sharding.imbalance(layouts[0]) > sharding.imbalance(layouts)


@pytest.mark.parametrize("balance", ["cost", "zigzag", "contiguous"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_blocks", [None, 3])
def test_sharding_of_a_length_is_that_of_rows_with_as_many_blocks(
    balance: str, causal: bool, num_blocks: int | None
) -> None:
    length, n_blocks = 16 * 20 - 3, 20
    columns = torch.arange(n_blocks)[:, None] - torch.arange(num_blocks or n_blocks)
    layout = BlockLayout.from_indices(
        columns if causal else columns % n_blocks, q_len=length, kv_len=length, block_size=16, causal=causal
    )
    for rank in range(3):
        config = config_of_rank(rank, 3, balance)
        found = SequenceSharding.from_length(length, 16, config, num_blocks=num_blocks, causal=causal)
        assert found == SequenceSharding.from_layout(layout, config)


def test_numbers_of_a_sharding_of_a_length_are_checked() -> None:
    config = config_of_rank(0, 4)
    for arguments, message in (
        ((0, 16), r"seq_len must be a positive int below 2\*\*31, got 0"),
        ((64, 17), "block_size must"),
        ((40, 16), "seq_len 40 has 3 blocks of block_size 16, too few for 4 ranks"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceSharding.from_length(*arguments, config)
    with pytest.raises(ValueError, match="num_blocks must be a number of blocks, at least 1, got 0"):
        SequenceSharding.from_length(64, 16, config, num_blocks=0)


def test_rows_of_a_rank_are_its_blocks() -> None:
    for rank in range(2):
        sharding = sharding_of(rank)
        assert torch.equal(sharding.block_rows(), sharding.blocks_of(rank))


def test_one_rank_holds_everything() -> None:
    sharding = SequenceSharding.from_layout(layout_of(100), config_of_rank(0, 1))
    assert sharding.positions().tolist() == list(range(100))
    x = torch.randn(1, 100, 2)
    assert shard_sequence(x, sharding).data_ptr() == x.data_ptr()
    assert unshard_sequence(x, sharding, config_of_rank(0, 1)) is x


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([[(0, 3)], [(4, 7)]], "each of the blocks 0 to 6 once"),
        ([[(0, 4)], [(3, 7)]], "each of the blocks 0 to 6 once"),
        ([[(0, 4)], [(4, 8)]], "each of the blocks 0 to 6 once"),
        ([[(4, 7)], [(0, 4)]], "last block must belong to the last rank"),
        ([[], [(0, 7)]], r"chunks\[0\] must be ascending"),
        ([[(0, 2)], [(4, 7), (2, 4)]], r"chunks\[1\] must be ascending"),
        ([[(0, 2)], [(2, 4), (4, 7)]], r"chunks\[1\] must be ascending"),
    ],
)
def test_other_chunks_are_refused(chunks: list[list[tuple[int, int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceSharding.make(chunks, LENGTH, 16, 0)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seq_len must be a positive int below 2\*\*31, got 0"):
        SequenceSharding.make(CHUNKS, 0, 16, 0)
    with pytest.raises(TypeError, match=r"block_size must be one of \(16, .*\), got 16\.0"):
        SequenceSharding.make(CHUNKS, LENGTH, cast(Any, 16.0), 0)
    with pytest.raises(TypeError, match="rank must be 0 to 1, got None"):
        SequenceSharding.make(CHUNKS, LENGTH, 16, cast(Any, None))


def test_a_rank_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be 0 to 1, got 2"):
        sharding_of(2)


def test_other_block_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"block_size must be one of \(16, 32, 64, 128, 256\), got 48"):
        SequenceSharding.make([[(0, 1)], [(1, 2)]], 96, 48, 0)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (7, r"chunks must hold for each rank its ranges \(first, stop\) of blocks, got 7"),
        ([(0, 2), (2, 7)], r"chunks\[0\] must be ranges \(first, stop\) of blocks.*got \(0, 2\)"),
        ([[(0, 2)], [(2, 4, 7)]], r"chunks\[1\] must be ranges \(first, stop\) of blocks.*got \[\(2, 4, 7\)"),
        ([[(0, 4.5)], [(4.5, 7)]], r"chunks\[0\] must be .* of whole blocks, as ints, got \[\(0, 4\.5\)\]"),
        ([[(0, 2)], None], r"chunks\[1\] must be ranges .*got None"),
    ],
)
def test_chunks_that_are_no_ranges_of_ints_are_refused(chunks: Any, message: str) -> None:
    for make in (SequenceSharding, SequenceSharding.make):
        with pytest.raises(TypeError, match=message):
            make(chunks, LENGTH, 16, 0)


def test_chunks_of_no_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks must hold the ranges of one rank or more, got none"):
        SequenceSharding.make([], LENGTH, 16, 0)


def test_lists_of_chunks_become_tuples() -> None:
    in_lists = [[[2, 4]], [torch.tensor([0, 2]), range(4, 8, 3)]]
    sharding = SequenceSharding(cast(Any, in_lists), LENGTH, 16, cast(Any, torch.tensor(1)))
    assert sharding.chunks == CHUNKS
    assert hash(sharding) == hash(sharding_of(1))
    assert sharding == sharding_of(1)
    assert type(sharding.rank) is int


@pytest.mark.parametrize("rank", [-1, 2, 9, 0.0, None])
def test_only_ranks_of_the_sharding_have_tokens(rank: Any) -> None:
    for of_rank in (sharding_of(0).token_ranges, sharding_of(0).blocks_of):
        with pytest.raises((TypeError, ValueError), match=f"rank must be 0 to 1, got {rank}"):
            of_rank(rank)


@needs_gloo
def test_a_mesh_in_place_of_a_config_is_refused() -> None:
    message = r"config must be a DistributedSparseConfig, got .*; use DistributedSparseConfig\(mesh\)"
    with mesh_of_one() as mesh:
        config = DistributedSparseConfig(mesh)
        sharding = SequenceSharding.from_layout(layout_of(64), config)
        for other in (mesh, dist.group.WORLD, None):
            given = cast(Any, other)
            for call in (
                lambda given=given: SequenceSharding.from_layout(layout_of(64), given),
                lambda given=given: SequenceSharding.from_length(64, 16, given),
                lambda given=given: unshard_sequence(torch.zeros(1, 64), sharding, given),
            ):
                with pytest.raises(TypeError, match=message):
                    call()


@pytest.mark.parametrize("balance", ["cost", "zigzag", "contiguous"])
def test_more_ranks_than_blocks_are_refused(balance: str) -> None:
    message = "seq_len 40 has 3 blocks of block_size 16, too few for 4 ranks.*at most 3 ranks"
    with pytest.raises(ValueError, match=message):
        SequenceSharding.from_layout(layout_of(40), config_of_rank(0, 4, balance))


def test_a_rank_for_every_block() -> None:
    sharding = SequenceSharding.from_layout(layout_of(40), config_of_rank(2, 3))
    assert sorted(sharding.local_lens) == [8, 16, 16]
    assert sharding.positions().tolist() == list(range(32, 40))


def test_other_layouts_are_refused() -> None:
    with pytest.raises(TypeError, match="layout must be a BlockLayout or a sequence of them, got 3"):
        SequenceSharding.from_layout(cast(Any, 3), config_of_rank(0, 2))
    with pytest.raises(TypeError, match="layout must be a BlockLayout"):
        SequenceSharding.from_layout([], config_of_rank(0, 2))
    with pytest.raises(ValueError, match="one length and block size"):
        SequenceSharding.from_layout([layout_of(64), layout_of(80)], config_of_rank(0, 2))
    cross = BlockLayout.from_config(SparsePatternConfig(block_size=16), 32, 64, causal=True)
    with pytest.raises(ValueError, match="q_len 32 and kv_len 64"):
        SequenceSharding.from_layout(cross, config_of_rank(0, 2))
    with pytest.raises(ValueError, match="107 tokens in blocks of 16"):
        sharding_of(0).imbalance(layout_of(64))


# ---- a tensor in parts


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_rank_takes_its_tokens(dim: int) -> None:
    x = torch.randn(3, LENGTH, 2).movedim(1, dim).contiguous()
    for rank in range(2):
        sharding = sharding_of(rank)
        part = shard_sequence(x, sharding, dim)
        assert torch.equal(part, x.index_select(dim, sharding.positions()))


def test_the_gradient_of_a_part_is_at_its_tokens() -> None:
    x = torch.zeros(1, LENGTH, 2, requires_grad=True)
    sharding = sharding_of(1)
    shard_sequence(x, sharding).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].nonzero().flatten().tolist() == sharding.positions().tolist()


def test_other_lengths_are_refused() -> None:
    x = torch.zeros(2, 9, 3)
    with pytest.raises(ValueError, match=r"the seq_len of the sharding, 107 tokens in dim 1, got 9 \(shape"):
        shard_sequence(x, sharding_of(0))
    with pytest.raises(ValueError, match="the local_len of rank 1, 75 tokens in dim 0, got 2"):
        unshard_sequence(x, sharding_of(1), config_of_rank(1, 2), dim=0)
    with pytest.raises(ValueError, match="dim must be -3 to 2"):
        shard_sequence(x, sharding_of(0), 3)


def test_other_tensors_shardings_and_dimensions_are_refused() -> None:
    sharding, config = sharding_of(0), config_of_rank(0, 2)
    x: dict[str, Any] = {"whole": torch.zeros(1, LENGTH), "part": torch.zeros(1, sharding.local_len)}
    for given, dim, message in (
        ([1], 1, r"x must be a tensor, got \[1\]; use torch.as_tensor\(x\)"),
        (None, "1", "dim must be an int, the dimension of the tokens in x, got '1'"),
        (None, None, "dim must be an int, the dimension of the tokens in x, got None"),
        (None, 1.0, r"dim must be an int, the dimension of the tokens in x, got 1\.0"),
    ):
        with pytest.raises(TypeError, match=message):
            shard_sequence(given or x["whole"], sharding, cast(Any, dim))
        with pytest.raises(TypeError, match=message):
            unshard_sequence(given or x["part"], sharding, config, cast(Any, dim))
    message = (
        "sharding must be a SequenceSharding or PackedSharding, got .*; use SequenceSharding.from_layout"
    )
    for other in (config, CHUNKS, None):
        with pytest.raises(TypeError, match=message):
            shard_sequence(x["whole"], cast(Any, other))
        with pytest.raises(TypeError, match=message):
            unshard_sequence(x["part"], cast(Any, other), config)
    with pytest.raises(ValueError, match=r"x must have a dimension of tokens, got a tensor of shape \(\)"):
        shard_sequence(torch.tensor(1.0), sharding, 0)


def test_a_sharding_of_other_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 0 of 4 as config is, got rank 1 of 2"):
        unshard_sequence(torch.zeros(1, 75), sharding_of(1), config_of_rank(0, 4))


# ---- the whole again, in two processes

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


def whole(dtype: torch.dtype = torch.float64) -> Tensor:
    """Some values, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, LENGTH, 2, dtype=torch.float64, generator=generator)
    return values > 0 if dtype == torch.bool else values.mul(9).to(dtype)


def in_parts_and_together(rank: int) -> list[Tensor]:
    """The whole of every type, of other dimensions, of one, and a gradient."""
    config = DistributedSparseConfig(dist.group.WORLD)
    sharding = sharding_of(rank)
    found = []
    for dtype in TYPES:
        x = whole(dtype)
        found.append(unshard_sequence(shard_sequence(x, sharding), sharding, config))
    for dim in (0, -1):
        x = whole().movedim(1, dim)
        found.append(
            unshard_sequence(shard_sequence(x, sharding, dim), sharding, config, dim).movedim(dim, 1)
        )
    x = torch.arange(LENGTH)
    found.append(unshard_sequence(shard_sequence(x, sharding, 0), sharding, config, 0))
    x = whole().requires_grad_()
    loss = unshard_sequence(shard_sequence(x, sharding), sharding, config).pow(3).sum()
    found.append(torch.autograd.grad(loss, x)[0])
    mine = shard_sequence(torch.zeros(3, LENGTH, 5 + rank), sharding)
    with pytest.raises(ValueError, match=r"other dimensions is \(3, 5\) on rank 0, \(3, 6\) on rank 1"):
        unshard_sequence(mine, sharding, config)
    return found


@needs_gloo
def test_parts_come_together_again(two: GlooProcesses) -> None:
    of_ranks = two.run(in_parts_and_together, limit=120.0)
    for rank, found in enumerate(of_ranks):
        results = iter(found)
        for dtype in TYPES:
            assert torch.equal(next(results), whole(dtype))
        for _ in range(2):
            assert torch.equal(next(results), whole())
        assert torch.equal(next(results), torch.arange(LENGTH))
        expected = torch.zeros_like(whole())
        mine = sharding_of(rank).positions()
        expected[:, mine] = 3 * whole()[:, mine] ** 2
        torch.testing.assert_close(next(results), expected, rtol=1e-12, atol=0)
        assert next(results, None) is None
