"""Lists from the indices of active blocks: who makes them, and the definition in plain tensor operations, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_internals import is_for_the_dispatcher
from ..grid import BlockGrid
from ..launching.installed import HAS_TRITON
from ..op_library import LIBRARY, NAMESPACE, define
from ..samples import one_by_one
from .block_indices import BlockIndices
from .lists import BlockLists, build_csr


def lists_of(given: BlockIndices) -> tuple[BlockLists, BlockLists]:
    """Row and column lists of `lists_of_indices`; on a GPU from kernels, where triton is installed.

    Indices without values, or of the samples of `torch.vmap`, go through the operator.
    """
    if torch.compiler.is_compiling() or is_for_the_dispatcher(given.indices):
        grid = given.grid
        tensors = block_lists(
            given.indices, given.counts, grid.q_len, grid.kv_len, grid.block_size, grid.causal
        )
        return BlockLists(*tensors[:3]), BlockLists(*tensors[3:])
    if given.indices.is_cuda and HAS_TRITON:
        from . import device_lists

        if device_lists.fits(given):
            return device_lists.lists_by_kernels(given)
    return lists_of_indices(given)


def lists_of_indices(given: BlockIndices) -> tuple[BlockLists, BlockLists]:
    """Row and column lists, with room for as many blocks as there are indices.

    Dropped are indices past the counts, negative ones, columns that the grid does not have, with a causal grid blocks of the
    future, and all but the first of equal ones in a row. The block id is the place of an index in `indices`, flat. Behind the
    lists everything is 0. Makes no host synchronisation.
    """
    indices, counts, grid = given
    n_rows, n_cols, n_slots, device = grid.n_rows, grid.n_cols, indices.shape[3], indices.device
    cols = indices.flatten().long()
    place = torch.arange(cols.numel(), device=device)
    owner = place // max(1, n_slots)
    is_kept = (cols >= 0) & (cols < n_cols)
    if counts is not None:
        is_kept &= place - owner * n_slots < counts.flatten()[owner]
    if grid.causal:
        is_kept &= cols <= owner % n_rows + grid.first_row
    in_no_row = given.n_lists * n_cols
    key, place = torch.where(is_kept, owner * n_cols + cols, in_no_row).sort(stable=True)
    key[1:].masked_fill_(key.diff() == 0, in_no_row)  # doubles: the first of a row stands first
    is_kept = key < in_no_row
    rows = build_csr(
        key, given.n_lists, n_cols, torch.where(is_kept, key % n_cols, 0), torch.where(is_kept, place, 0)
    )
    return rows, transposed(rows, given.heads, n_rows, n_cols)


def transposed(rows: BlockLists, heads: int, n_rows: int, n_cols: int) -> BlockLists:
    """The column lists of row lists that have a capacity; `heads` are those of all batch elements."""
    owner = rows.owners()
    is_kept = owner < heads * n_rows
    head, row = owner // n_rows, owner % n_rows
    key = torch.where(is_kept, (head * n_cols + rows.indices) * n_rows + row, heads * n_cols * n_rows)
    return build_csr(key, heads * n_cols, n_rows, torch.where(is_kept, row, 0), rows.block_ids)


# ---- the operator, which torch.compile sees as one node

block_lists = define(
    "block_lists(Tensor indices, Tensor? counts, SymInt q_len, SymInt kv_len, SymInt block_size, bool causal) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def make_block_lists(
    indices: Tensor, counts: Tensor | None, q_len: int, kv_len: int, block_size: int, causal: bool
) -> tuple[Tensor, ...]:
    """The tensors of the row lists and of the column lists."""
    grid = BlockGrid(q_len, kv_len, block_size, causal)
    rows, cols = lists_of(BlockIndices(indices, counts, grid))
    return *rows.tensors(), *cols.tensors()


def fake_block_lists(
    indices: Tensor, counts: Tensor | None, q_len: int, kv_len: int, block_size: int, causal: bool
) -> tuple[Tensor, ...]:
    heads, n_rows, capacity = indices.shape[0] * indices.shape[1], indices.shape[2], indices.numel()
    n_cols = (kv_len + block_size - 1) // block_size

    def empty(size: int) -> Tensor:
        return indices.new_empty(size, dtype=torch.int32)

    row_lists = empty(heads * n_rows + 1), empty(capacity), empty(capacity)
    return *row_lists, empty(heads * n_cols + 1), empty(capacity), empty(capacity)


def vmap_block_lists(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """The lists of each sample."""
    return one_by_one(block_lists, in_dims, args, info.batch_size)


LIBRARY.impl("block_lists", make_block_lists, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::block_lists", fake_block_lists, lib=LIBRARY)
torch.library.register_vmap(f"{NAMESPACE}::block_lists", vmap_block_lists, lib=LIBRARY)
