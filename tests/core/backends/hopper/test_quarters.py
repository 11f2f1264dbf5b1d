"""Blocks of 256 as four of 128: the same pairs, block ids and masks, beside the dense matrix."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper import HOPPER, entry_masks
from dilated_attention_pytorch.backends.hopper.prepared import Prepared, make_prepared
from dilated_attention_pytorch.backends.hopper.quarters import quartered_grid, quartered_lists
from dilated_attention_pytorch.backends.hopper.work_order import make_work_order
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, unpacked_masks


def dense_ids(lists: BlockLists, n_groups: int, n_lists: int, n_inner: int) -> Tensor:
    """The block id of every pair, -1 where inactive, (n_groups, n_lists, n_inner); lists must be sorted."""
    made = torch.full((n_groups * n_lists, n_inner), -1)
    bounds = lists.indptr.tolist()
    for i, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        indices = lists.indices[lo:hi].long()
        assert indices.tolist() == sorted(set(indices.tolist()))
        made[i, indices] = lists.block_ids[lo:hi].long()
    return made.view(n_groups, n_lists, n_inner)


def expected_ids(ids: Tensor) -> Tensor:
    """Of quarters, given those of blocks (n_groups, n_rows, n_cols)."""
    i, j = torch.arange(2)[:, None], torch.arange(2)
    quarters = torch.where(ids[..., None, None] >= 0, 4 * ids[..., None, None] + 2 * i + j, -1)
    return quarters.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def layouts() -> dict[str, BlockLayout]:
    mask = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 1, 2] = False
    indices = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :3]
    counts = torch.tensor([3, 0, 2, 1]).expand(2, 1, 4)
    return {
        "batch_and_heads": BlockLayout.from_dense(mask, 256),
        "with_room": BlockLayout.from_indices(indices, counts, q_len=1000, kv_len=1280, block_size=256),
        "nothing": BlockLayout.from_dense(torch.zeros(2, 2, dtype=torch.bool), 256),
    }


@pytest.mark.parametrize("name", ["batch_and_heads", "with_room", "nothing"])
def test_quarters_are_the_pairs_of_their_blocks(name: str) -> None:
    layout = layouts()[name]
    grid, n_groups = layout.grid, layout.batch * layout.num_heads
    ids = layout.entries()
    wanted = expected_ids(ids)
    assert (wanted >= 0).sum() == 4 * layout.num_active_blocks
    rows, cols = quartered_lists(layout.row_lists, True), quartered_lists(layout.col_lists, False)
    assert torch.equal(dense_ids(rows, n_groups, 2 * grid.n_rows, 2 * grid.n_cols), wanted)
    assert torch.equal(dense_ids(cols, n_groups, 2 * grid.n_cols, 2 * grid.n_rows), wanted.transpose(1, 2))
    assert rows.indices.numel() == 4 * layout.row_lists.indices.numel()
    assert rows.indptr.dtype == rows.indices.dtype == rows.block_ids.dtype == torch.int32


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(256, 256), (1100, 1100), (300, 1300), (700, 300), (1, 1000)])
def test_the_grid_of_quarters_has_two_rows_and_columns_for_each(
    q_len: int, kv_len: int, causal: bool
) -> None:
    grid = BlockGrid(q_len, kv_len, 256, causal)
    quarters = quartered_grid(grid)
    assert quarters.block_size == 128
    assert (quarters.n_rows, quarters.n_cols) == (2 * grid.n_rows, 2 * grid.n_cols)
    assert quarters.first_row == 2 * grid.first_row


def prepared_of(layout: BlockLayout) -> Prepared:
    n_heads = layout.batch * layout.num_heads
    return make_prepared(layout.grid, n_heads, layout.lists(), None, layout.block_masks, make_work_order)


def masked_layout(block_size: int) -> BlockLayout:
    """Some blocks whole, some with a mask, some missing."""
    pairs = torch.rand(2, 4 * block_size, 3 * block_size, generator=torch.Generator().manual_seed(0)) < 0.5
    pairs[:, :block_size] = True
    pairs[0, block_size : 2 * block_size, block_size : 2 * block_size] = False
    pairs[1, 2 * block_size :, : 2 * block_size] = pairs[1, :block_size, :block_size].repeat(2, 2)
    return BlockLayout.from_mask(pairs, block_size)


def dense_pairs(lists: BlockLists, ids: Tensor, table: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bool (heads, lists * size, indices * size): the pairs that lists and masks of entries keep."""
    n_heads, n_lists, n_inner = shape
    size, masks = table.shape[1], unpacked_masks(table)
    made = torch.zeros(n_heads * n_lists, size, n_inner, size, dtype=torch.bool)
    bounds = lists.indptr.tolist()
    for i, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        for e in range(lo, hi):
            mask = int(ids[e])
            made[i, :, int(lists.indices[e])] = True if mask < 0 else masks[mask]
    return made.view(n_heads, n_lists * size, n_inner * size)


@pytest.mark.parametrize("block_size", [64, 128, 256])
def test_masks_of_entries_are_those_of_their_blocks_by_queries_and_by_keys(
    block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = masked_layout(block_size)
    # in pieces of three masks
    monkeypatch.setattr(entry_masks, "PAIRS_AT_ONCE", 3 * min(block_size, 128) ** 2)
    wanted = kept_pairs_of(layout)
    made = prepared_of(layout)
    assert made.masks is not None
    rows, cols = made.lists or layout.lists()
    per_block = max(1, block_size // 128)
    n_rows, n_cols = layout.grid.n_rows * per_block, layout.grid.n_cols * per_block
    found = dense_pairs(rows, made.masks.of_rows, made.masks.table, (2, n_rows, n_cols))
    assert torch.equal(found, wanted)
    by_keys = dense_pairs(cols, made.masks.of_columns, made.masks.by_keys, (2, n_cols, n_rows))
    assert torch.equal(by_keys, wanted.transpose(1, 2))
    assert len(made.tensors()) == 5 + (6 if block_size == 256 else 0)


def kept_pairs_of(layout: BlockLayout) -> Tensor:
    """Bool (heads, q_len, kv_len), from the ids and masks of the layout itself."""
    size, masks = layout.block_size, layout.block_masks
    assert masks is not None
    entries = layout.entries()
    mask = torch.where(entries >= 0, masks.ids[entries.clamp(min=0)].long(), -2)
    whole = torch.ones(1, size, size, dtype=torch.bool)
    table = torch.cat([~whole, whole, unpacked_masks(masks.table)])[mask + 2]
    return table.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def test_masks_of_lists_with_room_are_none_behind_the_lists() -> None:
    layout = masked_layout(64)
    lists = layout.row_lists
    roomy = BlockLists(
        lists.indptr,
        *(
            torch.cat([x, torch.full((3,), 2**31 - 1, dtype=torch.int32)])
            for x in (lists.indices, lists.block_ids)
        ),
    )
    assert layout.block_masks is not None
    found = entry_masks.mask_ids(roomy, layout.block_masks)
    assert torch.equal(found[:-3], entry_masks.mask_ids(lists, layout.block_masks))
    assert found[-3:].tolist() == [-1, -1, -1]


def test_what_is_prepared_is_kept_with_the_layout() -> None:
    layout = masked_layout(256)
    first, second = HOPPER.prepare(layout, None), HOPPER.prepare(layout, None)
    assert all(x is y for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(first, prepared_of(layout).tensors(), strict=True))
