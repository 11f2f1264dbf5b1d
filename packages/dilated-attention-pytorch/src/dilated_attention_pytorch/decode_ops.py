"""The custom operator of decoding: its schema, its fake and its implementation. It has no gradient.

A graph takes the lists of a layout and the lengths of the caches as tensors, so it serves every step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch_internals import as_of_call, is_fake, without_function_modes
from .backends.decode_problem import DecodeInputs, DecodeProblem
from .decode_eager import cached_call, key_of, run_decode
from .grid import BlockGrid
from .layout.layout import ALIVE, BlockLayout, key_of_alive
from .layout.lists import BlockLists, BlockMasks
from .op_library import LIBRARY, NAMESPACE, define
from .ops import lse_dtype
from .samples import one_by_one

decode = define(
    "decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_lengths, Tensor? block_table, Tensor? kv_starts, "
    "Tensor? alibi_slopes, Tensor? sinks, Tensor row_indptr, Tensor row_indices, Tensor row_block_ids, "
    "Tensor? mask_ids, Tensor? mask_table, SymInt[] geometry, float[] numbers, str backend) -> (Tensor, Tensor)"
)


class DecodeGeometry(NamedTuple):
    """The argument `geometry`: the grid of the layout, whose batch and heads it has; flags are 0 or 1."""

    q_len: int
    kv_len: int
    block_size: int
    is_causal_layout: int
    q_offset: int
    layout_batch: int
    layout_heads: int

    def grid(self) -> BlockGrid:
        """The grid of the layout."""
        lengths = int(self.q_len), int(self.kv_len)
        return BlockGrid(*lengths, int(self.block_size), bool(self.is_causal_layout), int(self.q_offset))


class DecodeNumbers(NamedTuple):
    """The argument `numbers`."""

    softmax_scale: float
    softcap: float


class DecodeOpArgs(NamedTuple):
    """The arguments of the operator, in the order of its schema; see DecodeInputs and BlockLists for the shapes."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cache_lengths: Tensor
    block_table: Tensor | None
    kv_starts: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    row_indptr: Tensor
    row_indices: Tensor
    row_block_ids: Tensor
    mask_ids: Tensor | None
    mask_table: Tensor | None
    geometry: Sequence[int]
    numbers: Sequence[float]
    backend: str

    def inputs(self) -> DecodeInputs:
        """The tensors of the call."""
        a = self
        return DecodeInputs(
            a.q, a.k_cache, a.v_cache, a.cache_lengths, a.block_table, a.kv_starts, a.alibi_slopes, a.sinks
        )

    def problem(self) -> DecodeProblem:
        """The problem."""
        a, geometry, numbers = self, DecodeGeometry(*self.geometry), DecodeNumbers(*self.numbers)
        masks = None
        if a.mask_ids is not None and a.mask_table is not None:
            masks = BlockMasks(a.mask_ids, a.mask_table)
        return DecodeProblem(
            inputs=a.inputs(),
            rows=BlockLists(a.row_indptr, a.row_indices, a.row_block_ids),
            block_masks=masks,
            grid=geometry.grid(),
            layout_batch=int(geometry.layout_batch),
            layout_heads=int(geometry.layout_heads),
            softmax_scale=numbers.softmax_scale,
            softcap=numbers.softcap,
        )


def op_args(problem: DecodeProblem, backend: str | None) -> DecodeOpArgs:
    """The arguments of a problem."""
    p, x, grid = problem, problem.inputs, problem.grid
    geometry = DecodeGeometry(
        q_len=grid.q_len,
        kv_len=grid.kv_len,
        block_size=grid.block_size,
        is_causal_layout=1 if grid.causal else 0,
        q_offset=grid.q_offset,
        layout_batch=p.layout_batch,
        layout_heads=p.layout_heads,
    )
    masks = p.block_masks or (None, None)
    lists: tuple[Any, ...] = (*p.rows.tensors(), *masks)
    if not torch.compiler.is_compiling() and is_fake(x.q):
        lists = tuple(None if tensor is None else as_of_call(tensor, x.q) for tensor in lists)
    row_indptr, row_indices, row_block_ids, mask_ids, mask_table = lists
    return DecodeOpArgs(
        q=x.q,
        k_cache=x.k_cache,
        v_cache=x.v_cache,
        cache_lengths=x.cache_lengths,
        block_table=x.block_table,
        kv_starts=x.kv_starts,
        alibi_slopes=x.alibi_slopes,
        sinks=x.sinks,
        row_indptr=row_indptr,
        row_indices=row_indices,
        row_block_ids=row_block_ids,
        mask_ids=mask_ids,
        mask_table=mask_table,
        geometry=list(geometry),
        numbers=[p.softmax_scale, p.softcap],
        backend=backend or "auto",
    )


def living_layout(problem: DecodeProblem) -> BlockLayout | None:
    """The layout of the lists, which caches resolved calls, if it is alive."""
    p = problem
    found = ALIVE.get(key_of_alive(p.grid, p.rows, p.block_masks))
    if found is None or (found.grid, found.num_heads, found.batch) != (
        p.grid,
        p.layout_heads,
        p.layout_batch,
    ):
        return None
    theirs = (*found.row_lists.tensors(), *(found.block_masks or ()))
    ours = (*p.rows.tensors(), *(p.block_masks or ()))
    return (
        found if len(ours) == len(theirs) and all(x is y for x, y in zip(ours, theirs, strict=True)) else None
    )


def find(problem: DecodeProblem, backend: str) -> tuple[BlockLayout | None, Hashable]:
    """The layout of a call, and the key under which that caches the call."""
    p = problem
    return living_layout(p), key_of(p.inputs, p.softmax_scale, p.softcap, backend)


def compute(*args: Any) -> tuple[Tensor, Tensor]:
    """out and lse."""
    a = DecodeOpArgs(*args)
    problem = without_function_modes(a.problem)
    layout, key = without_function_modes(find, problem, a.backend)
    cached = None if layout is None else cached_call(layout, key)
    if cached is not None:
        results: tuple[Any, Any] = cached(problem.inputs, True)
        return results
    with torch.no_grad():
        return run_decode(problem, a.backend, layout, key)


def fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, q_len, num_heads, _ = q.shape
    lse = q.new_empty(batch, num_heads, q_len, dtype=lse_dtype(q))
    return q.new_empty(batch, q_len, num_heads, v_cache.shape[3]), lse


LIBRARY.impl("decode", compute, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::decode", fake, lib=LIBRARY)


def vmap_decode(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """A step of each sample."""
    return one_by_one(decode, in_dims, args, info.batch_size)


torch.library.register_vmap(f"{NAMESPACE}::decode", vmap_decode, lib=LIBRARY)
