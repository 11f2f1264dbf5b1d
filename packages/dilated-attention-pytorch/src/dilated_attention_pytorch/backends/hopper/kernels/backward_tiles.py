"""Work tiles of the backward where sequences have positions of their own (sequences.py): what is kept and what streams by.

The dq pass keeps queries and streams the keys that the lists of rows name; the dkdv pass keeps keys and streams queries.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .sequences import (
    GROUP_BITS,
    Layout,
    Sequence,
    Sequences,
    entries_between,
    first_list_of,
    groups_before,
    groups_of,
    merged_entries,
    sequence_of,
    tile_of_sequence,
)
from .tile_scheduler import read_number

SEQUENCE_NUMBERS = gl.constexpr(19)  # that are published of a tile


@aggregate
class SequenceGrid:
    """Sizes of a call with sequences; n_chunks: of the lse and delta of a head."""

    sequences: Sequences
    layout: Layout
    n_tiles: gl.tensor
    n_chunks: gl.tensor


@aggregate
class Windows:
    """The entries of the list of a row (column), or of two, that take part; and what those two have together: entries of their
    merged list, with places from first_place on, of which those from index `begin` to `end` take part.
    """

    lo: gl.tensor
    hi: gl.tensor
    lo_2: gl.tensor
    hi_2: gl.tensor
    merged_lo: gl.tensor
    merged_hi: gl.tensor
    first_place: gl.tensor
    begin: gl.tensor | gl.constexpr
    end: gl.tensor

    @gluon.jit
    def n_places(self):
        """How many places there are."""
        return self.merged_hi - self.merged_lo

    @gluon.jit
    def load_entry(self, entries, e, PAIRED: gl.constexpr):
        """Entry e of the merged list; -1 where there is none, or where it does not take part."""
        entry = gl.load(entries + e, mask=self.merged_lo < self.merged_hi, other=-1)
        if PAIRED:
            entry = gl.where((entry >> 1 >= self.begin) & (entry >> 1 < self.end), entry, -1)
        return entry


@aggregate
class BackwardTile:
    """A work tile. Tokens are counted in memory, positions from the first key of the sequence.

    chunk: the first chunk of lse and delta of the kept queries, or of the layout's first row; head: of what is kept;
    kept_token, kept_position: of the first kept token; streamed_token: where the layout's first row (column) is in memory;
    begin and end: positions of the tokens that there are.
    """

    i_sequence: gl.tensor
    i_batch: gl.tensor
    head: gl.tensor
    group: gl.tensor
    chunk: gl.tensor
    sequence: Sequence
    kept_token: gl.tensor
    kept_position: gl.tensor
    kept_begin: gl.tensor | gl.constexpr
    kept_end: gl.tensor
    streamed_token: gl.tensor
    streamed_begin: gl.tensor | gl.constexpr
    streamed_end: gl.tensor
    windows: Windows


@gluon.jit
def windows_of(lists, layout, sequence, first_list, group, IS_CAUSAL: gl.constexpr, DKDV: gl.constexpr):
    """What a sequence has of the lists of a group of rows (columns)."""
    BLOCK_SIZE: gl.constexpr = layout.BLOCK_SIZE
    BLOCK_BITS: gl.constexpr = 6 if BLOCK_SIZE == 64 else 7
    last_query = sequence.q_position + sequence.q_len - 1
    if DKDV:
        begin = (sequence.q_position >> BLOCK_BITS) - layout.first_row
        end = (last_query >> BLOCK_BITS) + 1 - layout.first_row
        if IS_CAUSAL:
            begin = gl.maximum(begin, (group << GROUP_BITS >> BLOCK_BITS) - layout.first_row)
        end = gl.where(sequence.q_len > 0, end, begin)
    else:
        begin = 0
        end = (sequence.kv_len + BLOCK_SIZE - 1) >> BLOCK_BITS
        if IS_CAUSAL:
            last = gl.minimum(layout.first_row * BLOCK_SIZE + (group << GROUP_BITS) + 127, last_query)
            end = gl.minimum(end, (last >> BLOCK_BITS) + 1)
    if BLOCK_SIZE == 64:
        one = entries_between(lists, layout, first_list, group * 2, begin, end, DKDV)
        two = entries_between(lists, layout, first_list, group * 2 + 1, begin, end, DKDV)
        both = merged_entries(lists, one, two)
        merged_lo = both.at + both.first_place
        return Windows(
            one.lo, one.hi, two.lo, two.hi, merged_lo, merged_lo + both.n_places, both.first_place, begin, end
        )
    else:
        one = entries_between(lists, layout, first_list, group, begin, end, DKDV)
        return Windows(one.lo, one.hi, one.lo, one.hi, one.lo, one.hi, one.lo * 0, begin, end)


@gluon.jit
def find_sequence_lists(tile, lists, heads, grid, config):
    """The numbers of a work tile (tile_scheduler.py), with the lists of its first head; some may be negative."""
    DKDV: gl.constexpr = config.DKDV
    LAST_FIRST: gl.constexpr = config.IS_CAUSAL and not DKDV  # the longest lists
    heads_per_tile = 1
    heads_beside = heads.per_kv
    if DKDV:
        heads_per_tile = heads.per_kv
        heads_beside = 1
    layout = grid.layout
    found = tile_of_sequence(tile, grid.sequences, layout, heads_beside, DKDV, LAST_FIRST)
    sequence = sequence_of(grid.sequences, found.i_sequence)
    chunk = groups_before(grid.sequences, layout, found.i_sequence, False)
    if DKDV:
        first_group, _ = groups_of(sequence, layout, False)
        chunk -= first_group
    else:
        chunk += found.rank
    first_list = first_list_of(layout, found.i_sequence, found.head * heads_per_tile // heads.per_list, DKDV)
    windows = windows_of(lists, layout, sequence, first_list, found.group, config.IS_CAUSAL, DKDV)
    numbers = (
        found.i_sequence, found.head, found.group, chunk * 2, sequence.q_start, sequence.q_len, sequence.kv_start,
        sequence.kv_len, sequence.q_position, windows.lo, windows.hi,
    )  # fmt: skip
    if layout.BLOCK_SIZE == 64:
        numbers += (
            windows.lo_2, windows.hi_2, windows.merged_lo, windows.merged_hi, windows.first_place, windows.begin, windows.end,
        )  # fmt: skip
    return numbers


@gluon.jit
def read_sequence_tile(queue, i_tile, grid, DKDV: gl.constexpr):
    """The i_tile-th tile of this program."""
    layout = grid.layout
    i_sequence, head, group = (
        read_number(queue, i_tile, 1), read_number(queue, i_tile, 2), read_number(queue, i_tile, 3),
    )  # fmt: skip
    i_batch = i_sequence
    if grid.sequences.PACKED:
        i_batch = i_sequence * 0
    sequence = Sequence(
        i_batch, read_number(queue, i_tile, 5), read_number(queue, i_tile, 6), read_number(queue, i_tile, 7),
        read_number(queue, i_tile, 8), read_number(queue, i_tile, 9),
    )  # fmt: skip
    lo, hi = read_number(queue, i_tile, 10), read_number(queue, i_tile, 11)
    if layout.BLOCK_SIZE == 64:
        windows = Windows(
            lo, hi, read_number(queue, i_tile, 12), read_number(queue, i_tile, 13), read_number(queue, i_tile, 14),
            read_number(queue, i_tile, 15), read_number(queue, i_tile, 16), read_number(queue, i_tile, 17),
            read_number(queue, i_tile, 18),
        )  # fmt: skip
    else:
        windows = Windows(lo, hi, lo, hi, lo, hi, lo * 0, lo * 0, hi)  # numbers all, as of `windows_of`
    first_position = layout.first_row * layout.BLOCK_SIZE
    q_end = sequence.q_position + sequence.q_len
    first_query = (
        sequence.q_start - sequence.q_position + first_position
    )  # in memory, of the layout's first row
    if DKDV:
        return BackwardTile(
            i_sequence, i_batch, head, group, read_number(queue, i_tile, 4), sequence, sequence.kv_start + group * 128,
            group * 128, 0, sequence.kv_len, first_query, sequence.q_position, q_end, windows,
        )  # fmt: skip
    else:
        return BackwardTile(
            i_sequence, i_batch, head, group, read_number(queue, i_tile, 4), sequence, first_query + group * 128,
            first_position + group * 128, sequence.q_position, q_end, sequence.kv_start, 0, sequence.kv_len, windows,
        )  # fmt: skip


@gluon.jit
def windows_of_head(work, layout_head, lists, grid, IS_CAUSAL: gl.constexpr):
    """The windows of another head that has the keys of a tile of the dkdv pass."""
    first_list = first_list_of(grid.layout, work.i_sequence, layout_head, True)
    return windows_of(lists, grid.layout, work.sequence, first_list, work.group, IS_CAUSAL, True)
