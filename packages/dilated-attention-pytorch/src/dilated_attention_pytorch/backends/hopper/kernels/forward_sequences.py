"""Work tiles of the forward where sequences have positions of their own: what the scheduler publishes, and who reads it."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .attend import entries_of_list
from .sequences import (
    entries_between,
    first_list_of,
    merged_entries,
    sequence_of,
    tile_of_sequence,
)
from .tile_scheduler import read_number

NUMBERS_PER_SEQUENCE_TILE = gl.constexpr(21)
# Published numbers are not negative, but a group may begin this many tokens before the first one in memory.
QUERIES_BEFORE = gl.constexpr(128)


@aggregate
class ListPart:
    """Entries of a list that are loaded: `n` from `lo` on; how many some query sees, and how many need no mask.

    n_left: where those nearest to the queries come first, how many are not behind the last query's block. Of the blocks that
    the lists of the tile have together these have `left_places` places, and the others places from `right_place` on.
    """

    lo: gl.tensor
    n: gl.tensor
    visible: gl.tensor
    whole: gl.tensor
    n_left: gl.tensor | gl.constexpr
    left_places: gl.tensor | gl.constexpr
    right_place: gl.tensor | gl.constexpr


@aggregate
class SequenceShare:
    """What the programs of a work tile have to know of its sequence. `query0`: where the first query of the group is in memory."""

    i_sequence: gl.tensor
    i_batch: gl.tensor
    head: gl.tensor
    position0: gl.tensor
    query0: gl.tensor
    first_query: gl.tensor
    end_query: gl.tensor
    kv_start: gl.tensor
    kv_len: gl.tensor
    n_places: gl.tensor


@gluon.jit
def counted(lists, entries, block_row, kv_len, BLOCK_SIZE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """The numbers of a `ListPart`."""
    counts = entries_of_list(lists.indices, entries.lo, entries.hi, block_row, kv_len, BLOCK_SIZE, IS_CAUSAL)
    numbers = (entries.lo, entries.hi - entries.lo)
    numbers += counts
    return numbers


@gluon.jit
def ends_of_lists(block_row, kv_len, ROWS: gl.constexpr, config):
    """Of rows of blocks from one on: the first column that no query sees, and the first behind the last query's block."""
    end = gl.cdiv(kv_len, config.BLOCK_SIZE)
    left_end = gl.minimum(end, block_row + ROWS)
    return left_end if config.IS_CAUSAL else end, left_end


@gluon.jit
def find_sequence_lists(tile, lists, heads, grid, config):
    """The numbers of a work tile, from 1 on."""
    BLOCK_SIZE: gl.constexpr = config.BLOCK_SIZE
    ROWS: gl.constexpr = 2 if BLOCK_SIZE == 64 else 1
    sequences, layout = grid.sequences, grid.layout
    work = tile_of_sequence(tile, sequences, layout, heads.per_kv, False, config.IS_CAUSAL)
    sequence = sequence_of(sequences, work.i_sequence)
    row = work.group * ROWS
    block_row = layout.first_row + row
    i_lists = work.i_sequence
    if grid.n_elements is not None:
        i_lists = work.i_sequence // grid.n_elements
    first_list = first_list_of(layout, i_lists, work.head // heads.per_list, False)
    end, left_end = ends_of_lists(block_row, sequence.kv_len, ROWS, config)
    first = entries_between(lists, layout, first_list, row, 0, end, False)
    n_places = first.hi - first.lo
    parts = counted(lists, first, block_row, sequence.kv_len, BLOCK_SIZE, config.IS_CAUSAL)
    if ROWS == 2:
        second = entries_between(lists, layout, first_list, row + 1, 0, end, False)
        merged = merged_entries(lists, first, second)
        n_places = merged.first_place + merged.n_places
        parts += counted(lists, second, block_row + 1, sequence.kv_len, BLOCK_SIZE, config.IS_CAUSAL)
    else:
        parts += parts
    nearest = ()
    if config.NEAREST_FIRST:
        left = entries_between(lists, layout, first_list, row, 0, left_end, False)
        n_left, n_left_2, left_places, right_place = (left.hi - left.lo,) * 4
        if ROWS == 2:
            left_2 = entries_between(lists, layout, first_list, row + 1, 0, left_end, False)
            merged = merged_entries(lists, left, left_2)
            n_left_2, left_places = left_2.hi - left_2.lo, merged.first_place + merged.n_places
            right = entries_between(lists, layout, first_list, row, left_end, end, False)
            right_2 = entries_between(lists, layout, first_list, row + 1, left_end, end, False)
            merged = merged_entries(lists, right, right_2)
            right_place = merged.first_place
            n_places = left_places + merged.n_places
        nearest = (n_left, n_left_2, left_places, right_place)
    query0 = sequence.q_start + block_row * BLOCK_SIZE - sequence.q_position
    numbers = (work.i_sequence * heads.num + work.head, gl.maximum(work.group, 0))
    numbers += parts
    numbers += (
        n_places, query0 + QUERIES_BEFORE, sequence.q_start, sequence.q_start + sequence.q_len, sequence.kv_start,
        sequence.kv_len,
    )  # fmt: skip
    numbers += nearest
    return numbers


@gluon.jit
def read_part(queue, i_tile, i: gl.constexpr, NEAREST_FIRST: gl.constexpr):
    """List i of the i_tile-th tile of this program."""
    n_left, left_places, right_place = None, None, None
    if NEAREST_FIRST:
        n_left, left_places, right_place = (
            read_number(queue, i_tile, 17 + i), read_number(queue, i_tile, 19), read_number(queue, i_tile, 20),
        )  # fmt: skip
    return ListPart(
        read_number(queue, i_tile, 3 + 4 * i), read_number(queue, i_tile, 4 + 4 * i),
        read_number(queue, i_tile, 5 + 4 * i), read_number(queue, i_tile, 6 + 4 * i), n_left, left_places,
        right_place,
    )  # fmt: skip


@gluon.jit
def read_share(queue, i_tile, heads, grid, BLOCK_SIZE: gl.constexpr):
    """The other numbers of the i_tile-th tile of this program."""
    ROWS: gl.constexpr = 2 if BLOCK_SIZE == 64 else 1
    sequence_head = read_number(queue, i_tile, 1)
    i_sequence = sequence_head // heads.num
    i_batch = i_sequence
    if grid.sequences.PACKED:
        i_batch = i_sequence * 0
    if grid.n_elements is not None:
        i_batch = i_sequence % grid.n_elements
    position0 = (grid.layout.first_row + read_number(queue, i_tile, 2) * ROWS) * BLOCK_SIZE
    return SequenceShare(
        i_sequence, i_batch, sequence_head % heads.num, position0, read_number(queue, i_tile, 12) - QUERIES_BEFORE,
        read_number(queue, i_tile, 13), read_number(queue, i_tile, 14), read_number(queue, i_tile, 15),
        read_number(queue, i_tile, 16), read_number(queue, i_tile, 11),
    )  # fmt: skip
