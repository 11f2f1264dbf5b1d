"""Where the work tiles of every sequence begin: cumulative numbers of its tiles of queries and of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .sequences import TABLE_COLUMNS

TILE = tl.constexpr(128)  # positions of a tile


@triton.jit(do_not_specialize=["n_sequences", "first_position"])
def tile_starts_kernel(Table, Starts, n_sequences, first_position, BLOCK: tl.constexpr):
    """One program. Starts: int32 (2, n_sequences + 1), the tiles before each sequence and those of all, of queries and of keys.

    A tile is 128 positions of the layout, whose first row begins at `first_position`; those of keys begin at position 0. A
    sequence has the tiles that hold a token of it.
    """
    n_rows = 0
    n_cols = 0
    tl.store(Starts, 0)
    tl.store(Starts + n_sequences + 1, 0)
    for begin in range(0, n_sequences, BLOCK):
        i_sequence = begin + tl.arange(0, BLOCK)
        inside = i_sequence < n_sequences
        row = Table + i_sequence * TABLE_COLUMNS
        q_len, kv_len = tl.load(row + 1, mask=inside, other=0), tl.load(row + 3, mask=inside, other=0)
        q_position = tl.load(row + 4, mask=inside, other=0)
        # the place of the first query in its tile: of a negative position, too
        place = (q_position - first_position) & (TILE - 1)
        rows = tl.where(q_len > 0, (place + q_len + TILE - 1) // TILE, 0)
        cols = (kv_len + TILE - 1) // TILE
        tl.store(Starts + 1 + i_sequence, n_rows + tl.cumsum(rows, 0), mask=inside)
        tl.store(Starts + n_sequences + 2 + i_sequence, n_cols + tl.cumsum(cols, 0), mask=inside)
        n_rows += tl.sum(rows, 0)
        n_cols += tl.sum(cols, 0)
