"""PackedSharding: which tokens each rank holds, their positions and indices, balance, errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.distributed.packed_sharding import PackedSharding, costs_of
from dilated_attention_pytorch.distributed.sharding import shard_sequence
from tests.core.distributed.gloo_processes import needs_gloo
from tests.core.distributed.one_process import config_of_rank, mesh_of_one

SIZE = 16


def layout_of(length: int, causal: bool = True, **more: Any) -> BlockLayout:
    return BlockLayout.from_config(
        SparsePatternConfig(sparsity_ratio=0.4, block_size=SIZE, **more), length, causal=causal
    )


def shardings(cu: Sequence[int], layout: Any, world_size: int, **more: Any) -> Iterator[PackedSharding]:
    is_causal, balance = more.pop("is_causal", True), more.pop("balance", "contiguous")
    for rank in range(world_size):
        config = config_of_rank(rank, world_size, balance)
        yield PackedSharding.from_sequences(cu, layout, config, is_causal=is_causal)


@pytest.mark.parametrize("balance", ["contiguous", "zigzag", "cost"])
def test_every_token_is_on_one_rank_with_its_position(balance: str) -> None:
    lengths = [40, 0, 1, 16, 17, 100, 0, 33]
    cu = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    found = list(shardings(cu, layout_of(100), 3, balance=balance))
    stream, positions = torch.arange(cu[-1]), torch.cat([torch.arange(n) for n in lengths])
    assert torch.cat([each.indices() for each in found]).sort().values.equal(stream)
    for each in found:
        assert shard_sequence(stream, each, 0).equal(each.indices())
        assert shard_sequence(positions, each, 0).equal(each.positions())
        assert each.local_len == each.indices().numel() == found[0].local_lens[each.rank]
        blocks = each.blocks_of(each.rank)
        assert int(each.tokens_of(blocks).sum()) == each.local_len
    assert (found[0].seq_len, found[0].max_seqlen, found[0].n_sequences) == (cu[-1], 100, 8)
    assert found[0] == next(shardings(torch.tensor(cu), layout_of(100), 3, balance=balance))  # type: ignore[arg-type]
    assert hash(found[0]) != hash(found[1])


def test_block_costs_what_its_sequence_lets_it_see() -> None:
    """Without causality the cost of a row is cut to the sequence; the window is as wide in a short one as in a long one."""
    lengths = [100, 16, 50]
    cu = (0, 100, 116, 166)
    sharding = PackedSharding((((0, 12),),), cu, SIZE, 0)
    for causal in (False, True):
        layouts = [layout_of(120, causal), layout_of(120, causal, pattern_type="local_window")]
        expected = []
        for length in lengths:
            n = -(-length // SIZE)
            dense = sum(layout.to_dense()[:n, :n].sum(1) for layout in layouts)
            expected += dense.tolist()
        assert costs_of(sharding.blocks, layouts, causal).tolist() == expected


@pytest.mark.parametrize("balance", ["contiguous", "zigzag", "cost"])
def test_short_sequences_stay_whole_beside_a_long_one(balance: str) -> None:
    short = list(range(0, 48 * 119 + 1, 48))
    for each in shardings(short, layout_of(48), 4, balance=balance):
        assert not each.is_split.any()
    with_long = [*short, short[-1] + 5000]
    found = next(shardings(with_long, layout_of(5000), 4, balance=balance))
    assert found.is_split[-1]
    assert int(found.is_split.sum()) <= 3  # one beside each end of the long one's parts


@pytest.mark.parametrize(
    ("cu", "error", "said"),
    [
        ([], ValueError, "begin with 0"),
        ([1, 50], ValueError, "begin with 0"),
        ([0, 50, 40, 90], ValueError, "never decrease"),
        ([0, 50, 151], ValueError, "covers 100 positions, but the longest sequence in cu_seqlens has 101"),
        ([0, 20], ValueError, "2 blocks of block_size 16, too few for 3 ranks"),
        ([0, 2**31], ValueError, r"below 2\*\*31"),
        ([0, 20.5], TypeError, "cu_seqlens must be ints"),
        (50, TypeError, "cu_seqlens must be a sequence of ints"),
        (torch.tensor([0.0, 50.0]), ValueError, "cu_seqlens must be int"),
        (torch.tensor([[0, 50]]), ValueError, r"shape \(sequences \+ 1,\)"),
        (torch.tensor([0, 50], device="meta"), TypeError, "keep the copy on the CPU"),
    ],
)
def test_offsets_that_are_none_are_refused(cu: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        list(shardings(cu, layout_of(100), 3))


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="layout must be a BlockLayout"):
        list(shardings([0, 90], None, 2))
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="batch 1, one for all sequences, got 2"):
        list(shardings([0, 90], BlockLayout.from_dense(mask, SIZE), 2))
    with pytest.raises(ValueError, match="same tokens"):
        list(shardings([0, 90], BlockLayout.from_dense(mask[0, :, :5], SIZE), 2))


def test_chunks_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="last block must belong to the last rank"):
        PackedSharding((((5, 11),), ((0, 5),)), (0, 60, 160), SIZE, 0)
    with pytest.raises(ValueError, match="each of the blocks 0 to 10 once"):
        PackedSharding((((0, 5),), ((5, 10),)), (0, 60, 165), SIZE, 0)
    with pytest.raises(ValueError, match="rank must be 0 to 1, got 2"):
        PackedSharding((((0, 5),), ((5, 11),)), (0, 60, 165), SIZE, 2)
    with pytest.raises(ValueError, match=r"block_size must be one of .*, got 48"):
        PackedSharding((((0, 2),),), (0, 96), 48, 0)
    halves: Any = [[(0, 4.5)], [(4.5, 11)]]
    with pytest.raises(TypeError, match=r"chunks\[0\] must be .* whole blocks, as ints"):
        PackedSharding(halves, (0, 60, 165), SIZE, 0)


def test_lists_of_chunks_become_tuples() -> None:
    in_lists: Any = [[[0, 5]], [[5, 11]]]
    sharding, same = (
        PackedSharding(chunks, (0, 60, 165), SIZE, 0) for chunks in (in_lists, (((0, 5),), ((5, 11),)))
    )
    assert (sharding, hash(sharding)) == (same, hash(same))


def test_only_ranks_of_the_sharding_have_tokens() -> None:
    sharding = PackedSharding((((0, 5),), ((5, 11),)), (0, 60, 165), SIZE, 0)
    for rank in (-1, 2, 9):
        for of_rank in (sharding.token_ranges, sharding.blocks_of):
            with pytest.raises(ValueError, match=f"rank must be 0 to 1, got {rank}"):
                of_rank(rank)


@needs_gloo
def test_a_mesh_in_place_of_a_config_is_refused() -> None:
    message = r"config must be a DistributedSparseConfig, got .*; use DistributedSparseConfig\(mesh\)"
    with mesh_of_one() as mesh, pytest.raises(TypeError, match=message):
        PackedSharding.from_sequences([0, 90], layout_of(100), mesh)  # type: ignore[arg-type]


def test_a_flag_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="is_causal must be True or False, got 2"):
        list(shardings([0, 90], layout_of(100), 2, is_causal=2))
