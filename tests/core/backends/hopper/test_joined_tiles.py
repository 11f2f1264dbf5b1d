"""Blocks of 16 and 32 joined to tiles of 64: the same pairs, beside the dense matrix."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.hopper.joined_tiles import TILE, joined_grid, joined_tiles, most_tiles
from dilated_attention_pytorch.backends.hopper.prepared import Prepared, make_prepared
from dilated_attention_pytorch.backends.hopper.work_order import make_work_order
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, unpacked_masks


def random_mask(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def layout_of(name: str, size: int) -> BlockLayout:
    if name == "heads":
        mask = random_mask(2, 3, 9, 11)
        mask[0, 1, :4] = mask[1, 0, :, 3] = False
        mask[1, 2, 4:8, :8] = True  # whole tiles
        return BlockLayout.from_dense(mask, size)
    if name == "ragged":
        return BlockLayout.from_dense(random_mask(5, 7), size, q_len=5 * size - 3, kv_len=7 * size - 9)
    if name == "chunk":  # its first row is the second or the third of a tile
        config = SparsePatternConfig(block_size=size, sparsity_ratio=0.4)
        return BlockLayout.from_config(config, 7 * size + 3, 13 * size + 5, causal=True)
    if name == "room":
        indices = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :5]
        counts = torch.tensor([5, 0, 2, 1, 5, 3]).expand(2, 1, 6)
        return BlockLayout.from_indices(indices, counts, q_len=6 * size, kv_len=9 * size, block_size=size)
    if name == "nothing":
        return BlockLayout.from_dense(torch.zeros(2, 5, dtype=torch.bool), size)
    if name == "masks":
        pairs = random_mask(2, 5 * size, 7 * size)
        pairs[0, : 4 * size, : 4 * size] = True
        pairs[1, size : 3 * size] = False
        pairs[1, 3 * size :, 2 * size : 6 * size] = pairs[1, :size, :size].repeat(2, 4)
        return BlockLayout.from_mask(pairs, size)
    raise AssertionError(name)


NAMES = ("heads", "ragged", "chunk", "room", "nothing", "masks")


def kept_pairs_of(layout: BlockLayout) -> Tensor:
    """Bool (heads, rows of blocks, columns of blocks) with an element for every pair, from the layout itself."""
    size, entries = layout.block_size, layout.entries()
    whole = torch.ones(1, size, size, dtype=torch.bool)
    kinds, kind = torch.cat([~whole, whole]), (entries >= 0).long()
    if layout.block_masks is not None:
        kinds = torch.cat([kinds, unpacked_masks(layout.block_masks.table)])
        kind = torch.where(entries >= 0, layout.block_masks.ids[entries.clamp(min=0)].long() + 2, 0)
    return kinds[kind].transpose(2, 3).flatten(3, 4).flatten(1, 2)


def prepared_of(layout: BlockLayout) -> Prepared:
    n_heads = layout.batch * layout.num_heads
    return make_prepared(layout.grid, n_heads, layout.lists(), None, layout.block_masks, make_work_order)


def mask_of(number: int, table: Tensor | None) -> Tensor:
    """Bool (64, 64) of the mask of an entry."""
    if number < 0:
        return torch.ones(TILE, TILE, dtype=torch.bool)
    if table is not None:
        return unpacked_masks(table)[number]
    parts = torch.tensor([number >> bit & 1 for bit in range(16)], dtype=torch.bool).view(4, 4)
    return parts.repeat_interleave(16, 0).repeat_interleave(16, 1)


def dense_pairs(lists: BlockLists, ids: Tensor, table: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    """Bool (heads, lists * 64, indices * 64): the pairs that lists and masks of entries keep; every entry keeps some."""
    n_heads, n_lists, n_inner = shape
    made = torch.zeros(n_heads * n_lists, TILE, n_inner, TILE, dtype=torch.bool)
    assert lists.indptr.numel() == n_heads * n_lists + 1
    for i, (lo, hi) in enumerate(itertools.pairwise(lists.indptr.tolist())):
        indices = lists.indices[lo:hi].tolist()
        assert indices == sorted(set(indices))
        for e in range(lo, hi):
            mask = mask_of(int(ids[e]), table)
            assert bool(mask.any())
            assert bool(mask.all()) == (int(ids[e]) == -1)
            made[i, :, int(lists.indices[e])] = mask
    return made.view(n_heads, n_lists * TILE, n_inner * TILE)


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_keep_the_pairs_of_their_blocks(name: str, size: int) -> None:
    layout = layout_of(name, size)
    grid, tiles, n_heads = layout.grid, joined_grid(layout.grid), layout.batch * layout.num_heads
    made = prepared_of(layout)
    assert made.masks is not None
    assert made.lists is not None
    (rows, cols), masks = made.lists, made.masks
    assert (masks.table is None) == (layout.block_masks is None)
    found = dense_pairs(rows, masks.of_rows, masks.table, (n_heads, tiles.n_rows, tiles.n_cols))
    before = (grid.first_row - tiles.first_row * (TILE // size)) * size
    wanted = torch.zeros_like(found)
    kept = kept_pairs_of(layout)
    wanted[:, before : before + kept.shape[1], : kept.shape[2]] = kept
    assert torch.equal(found, wanted)
    by_keys = dense_pairs(cols, masks.of_columns, masks.by_keys, (n_heads, tiles.n_cols, tiles.n_rows))
    assert torch.equal(by_keys, wanted.transpose(1, 2))
    capacity = most_tiles(grid, n_heads, layout.row_lists.indices.numel())
    for lists, ids in ((rows, masks.of_rows), (cols, masks.of_columns)):
        assert lists.indices.numel() == lists.block_ids.numel() == ids.numel() == capacity
        assert lists.indptr.dtype == lists.indices.dtype == lists.block_ids.dtype == ids.dtype == torch.int32
        assert set(ids[int(lists.indptr[-1]) :].tolist()) <= {-1}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(16, 16), (1100, 1100), (300, 1300), (700, 300), (1, 1000)])
def test_the_grid_of_tiles_covers_the_rows_and_columns_of_blocks(
    q_len: int, kv_len: int, causal: bool
) -> None:
    grid = BlockGrid(q_len, kv_len, 16, causal)
    tiles = joined_grid(grid)
    assert tiles.first_row == grid.first_row // 4
    assert tiles.n_rows == (grid.first_row + grid.n_rows - 1) // 4 - tiles.first_row + 1
    assert tiles.n_cols == -(-grid.n_cols // 4)


@pytest.mark.parametrize("name", ["heads", "masks"])
def test_what_is_prepared_is_kept_with_the_layout(name: str) -> None:
    layout = layout_of(name, 32)
    first, second = HOPPER.prepare(layout, None), HOPPER.prepare(layout, None)
    assert all(x is y for x, y in zip(first, second, strict=True))
    made = prepared_of(layout)
    assert all(torch.equal(x, y) for x, y in zip(first, made.tensors(), strict=True))
    assert len(first) == 1 + (2 if name == "heads" else 4) + 6


def test_memory_is_a_few_bytes_for_each_block() -> None:
    config = SparsePatternConfig(block_size=16, sparsity_ratio=0.05)
    layout = BlockLayout.from_config(config, 4096)
    _, *of_tiles = HOPPER.prepare(layout, None)
    n_bytes = sum(x.numel() * x.element_size() for x in of_tiles)
    assert 16 * layout.num_active_blocks < n_bytes <= 33 * layout.num_active_blocks


def check_kernels(layout: BlockLayout) -> None:
    from dilated_attention_pytorch.backends.hopper.device_tiles import joined_tiles_by_kernels

    given = layout.row_lists, layout.grid, layout.batch * layout.num_heads
    wanted, found = joined_tiles(*given), joined_tiles_by_kernels(*given)
    assert torch.equal(found.numbers, wanted.numbers)
    assert torch.equal(found.numbers_by_keys, wanted.numbers_by_keys)
    for made, lists in ((found.rows, wanted.rows), (found.cols, wanted.cols)):
        assert torch.equal(made.indptr, lists.indptr)
        n = int(lists.indptr[-1])
        assert torch.equal(made.indices[:n], lists.indices[:n])
        assert torch.equal(made.block_ids[:n], lists.block_ids[:n])
        assert all(x.dtype == torch.int32 and x.numel() == lists.indices.numel() for x in made.tensors()[1:])


@pytest.mark.interpreter
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", NAMES[:-1])
def test_kernels_make_the_tiles_of_the_definition(name: str, size: int) -> None:
    check_kernels(layout_of(name, size))


@pytest.mark.interpreter
def test_kernels_take_lists_in_pieces_and_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from dilated_attention_pytorch.backends.hopper import device_tiles

    for name, value in (("ENTRIES", 4), ("AT_ONCE", 8), ("key_type", lambda n_keys: torch.int64)):
        monkeypatch.setattr(device_tiles, name, value)
    check_kernels(layout_of("heads", 16))


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_prepared_on_the_gpu_is_that_of_the_cpu_without_waiting(name: str, size: int) -> None:
    layout = layout_of(name, size)
    there = layout.to("cuda")
    HOPPER.prepare(there, None)  # compiles
    there._prepared.clear()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = HOPPER.prepare(there, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    n_tiles = int(made[-6][-1])
    # behind the lists indices and the order of work mean nothing
    for x, wanted in zip(made[1:], HOPPER.prepare(layout, None)[1:], strict=True):
        n = n_tiles if x.shape[0] == made[1].shape[0] else x.shape[0]
        assert torch.equal(x[:n].cpu(), wanted[:n])
