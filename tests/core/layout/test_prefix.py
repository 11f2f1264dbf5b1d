"""The prefix of a layout is the layout of fewer positions, with the blocks and masks of its own."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.layout.lists import BlockLists, BlockMasks

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)


@pytest.mark.parametrize("pattern", ["dilated_sparse", "local_window", "global_local"])
@pytest.mark.parametrize("length", [1, 16, 17, 130, 159, 160, 199, 200])
def test_prefix_of_a_causal_pattern_is_its_layout_of_that_length(pattern: str, length: int) -> None:
    config = SparsePatternConfig(pattern, 16, 0.4, global_tokens=20 if pattern == "global_local" else 0)  # type: ignore[arg-type]
    found = BlockLayout.from_config([config, CONFIG], 200, causal=True).prefix(length)
    wanted = BlockLayout.from_config([config, CONFIG], length, causal=True)
    assert (found.grid, found.num_heads, found.configs) == (wanted.grid, wanted.num_heads, wanted.configs)
    for ours, theirs in zip(found._tensors(), wanted._tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_prefix_of_blocks_of_ones_own_keeps_those_inside() -> None:
    mask = torch.rand(2, 8, 8) < 0.5
    found = BlockLayout.from_dense(mask, 16).prefix(75)
    assert torch.equal(found.to_dense(), mask[:, :5, :5])
    assert (found.q_len, found.kv_len, found.configs) == (75, 75, None)


def test_prefix_of_a_pattern_that_depends_on_the_length_has_no_config() -> None:
    assert BlockLayout.from_config(CONFIG, 200).prefix(100).configs is None


def test_lists_are_made_once_per_number_of_blocks_and_few_are_kept() -> None:
    layout = BlockLayout.from_config(CONFIG, 16 * 40, causal=True)
    first = layout.prefix(100)
    assert layout.prefix(97).row_lists is first.row_lists
    assert layout.prefix(96).row_lists is not first.row_lists
    assert layout.prefix(640) is layout
    assert layout.prefix(639).row_lists is layout.row_lists
    for n_blocks in range(1, 40):
        layout.prefix(16 * n_blocks)
    assert len(layout._prefixes) == layout._prefixes.bound
    assert not pickle.loads(pickle.dumps(layout))._prefixes


def test_masks_and_lists_of_elements_stay_with_their_blocks() -> None:
    mask = torch.rand(3, 2, 6, 6) < 0.5
    one = BlockLayout.from_dense(mask.flatten(0, 1), 16)
    ids = torch.randint(-1, 4, (one.num_block_ids,), dtype=torch.int32)
    table = torch.randint(-9, 9, (4, 16, 1), dtype=torch.int32)
    layout = dataclasses.replace(one, num_heads=2, batch=3, block_masks=BlockMasks(ids, table))
    found = layout.prefix(40)
    assert (found.batch, found.num_heads) == (3, 2)
    dense = torch.full((6, 6, 6), -2, dtype=torch.int32)
    dense[mask.flatten(0, 1)] = ids
    entries = found.entries()
    assert found.block_masks is not None
    assert torch.equal(entries >= 0, mask.flatten(0, 1)[:, :3, :3])
    assert torch.equal(found.block_masks.ids[entries[entries >= 0]], dense[:, :3, :3][entries >= 0])


@pytest.mark.parametrize("length", [0, -1, 201, 2.5, True, None, "x"])
def test_lengths_that_it_has_not_are_refused(length: object) -> None:
    with pytest.raises((TypeError, ValueError), match="length must be 1 to q_len 200, got"):
        BlockLayout.from_config(CONFIG, 200).prefix(length)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_layout_that_is_not_square_has_no_prefix(causal: bool) -> None:
    with pytest.raises(ValueError, match="prefix needs a layout of queries and keys at the same positions"):
        BlockLayout.from_config(CONFIG, 100, 200, causal).prefix(50)


# ---- how an operator finds a layout again


def with_masks(layout: BlockLayout) -> BlockLayout:
    ids = torch.zeros(layout.num_block_ids, dtype=torch.int32)
    return dataclasses.replace(
        layout, block_masks=BlockMasks(ids, torch.full((1, 16, 1), 7, dtype=torch.int32))
    )


def test_layouts_with_the_same_lists_are_told_apart() -> None:
    plain = BlockLayout.from_config(CONFIG, 200)
    others = [with_masks(plain), with_masks(plain), plain.for_lengths(199, 200), plain]
    moved = dataclasses.replace(plain, grid=dataclasses.replace(plain.grid, q_offset=4))
    for layout in (*others, moved, *others):
        found = BlockLayout.from_lists(
            layout.grid,
            layout.num_heads,
            layout.row_lists,
            layout.col_lists,
            layout.batch,
            layout.block_masks,
        )
        assert found is layout
    rows = BlockLists(plain.row_lists.indptr, plain.row_lists.indices, plain.row_lists.block_ids.clone())
    assert BlockLayout.from_lists(plain.grid, 1, rows, plain.col_lists) is not plain


def test_masks_move_and_are_pickled_with_the_layout() -> None:
    layout = with_masks(BlockLayout.from_config(CONFIG, 200))
    assert layout.block_masks is not None
    copied = pickle.loads(pickle.dumps(layout))
    for ours, theirs in zip(copied.block_masks, layout.block_masks, strict=True):
        assert torch.equal(ours, theirs)
    moved = layout.to("meta")
    assert all(x.is_meta for x in moved._tensors())


def test_pickles_from_before_there_were_prefixes_are_read() -> None:
    layout = BlockLayout.from_config(CONFIG, 200, causal=True)
    state = dict(layout.__dict__)
    for name in ("_prefixes", "batch", "block_masks"):
        del state[name]
    old = object.__new__(BlockLayout)
    old.__setstate__(state)
    assert old.prefix(100).to_dense().equal(layout.prefix(100).to_dense())


def test_pickles_from_before_fields_were_public_are_read() -> None:
    indices = torch.tensor([[0, 0], [1, -1]])  # a list that does not fill its tensor
    layout = BlockLayout.from_indices(indices, q_len=32, kv_len=32, block_size=16)
    state = dict(layout.__dict__)
    for name, public in (("_is_exact", "is_exact"), ("_in_graph", "is_captured"), ("_cached_calls", "calls")):
        state[name] = state.pop(public)
    old = object.__new__(BlockLayout)
    old.__setstate__(state)
    assert vars(old).keys() == vars(layout).keys()
    assert (old.is_exact, old.num_active_blocks) == (False, 2)
