"""Stores of some of the rows of a tile: where a sequence ends within it, the rows beside it belong to others."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .tma import store_tokens


@aggregate
class TokenRows:
    """A tensor (batch, tokens, heads, DIM) by its address and its strides, of which the last is 1."""

    base: gl.tensor | gl.constexpr
    stride_b: gl.tensor | gl.constexpr
    stride_s: gl.tensor | gl.constexpr
    stride_h: gl.tensor | gl.constexpr
    DIM: gl.constexpr


@aggregate
class KeptRows:
    """Rows of a tile of 64 tokens of a head: those from `begin` to `end`, numbers that may lie outside of it, are tokens of it."""

    i_batch: gl.tensor
    head: gl.tensor
    token: gl.tensor
    begin: gl.tensor | gl.constexpr
    end: gl.tensor | gl.constexpr


@gluon.jit
def store_kept(desc, boxes, tensor, tiles, tails, slot, rows):
    """Start storing the rows of a tile, which must have been written before a fence for asynchronous readers.

    A whole tile is read by the tensor memory accelerator, of another the rows are stored here.
    """
    D: gl.constexpr = tiles.shape[2]
    COLUMNS: gl.constexpr = D if tails is None else D + 64
    if (rows.begin <= 0) & (rows.end >= 64):
        store_tokens(desc, boxes.main, slot, rows.i_batch, rows.head, rows.token, D, COLUMNS, boxes.tails)
    elif (rows.begin < 64) & (rows.end > 0):
        store_columns(tensor, tiles.index(slot), rows, 0)
        if tails is not None:
            store_columns(tensor, tails.index(slot), rows, D)


@gluon.jit
def store_columns(tensor, tile, rows, FIRST: gl.constexpr):
    """Store the rows of a tile whose first column is number FIRST."""
    D: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    d = FIRST + gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    first = rows.i_batch.to(gl.int64) * tensor.stride_b + rows.head.to(gl.int64) * tensor.stride_h
    place = first + (rows.token + row).to(gl.int64) * tensor.stride_s
    mask = ((row >= rows.begin) & (row < rows.end))[:, None] & (d < tensor.DIM)[None, :]
    gl.store(tensor.base + place[:, None] + d[None, :], tile.load(layout), mask=mask)
