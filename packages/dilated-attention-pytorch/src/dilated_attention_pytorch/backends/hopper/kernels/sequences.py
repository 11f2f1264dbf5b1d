"""Sequences of a call: each has positions of its own, and its tiles see parts of the lists of a layout.

Tokens are taken in groups of 128 positions, rows of the layout from its first position on, columns from position 0 on; so a
group has one row (column) of blocks of 128, or two of 64. A work tile is a group of a sequence, for one head. The first and
the last group of queries may begin before and end behind the sequence, and groups may lie outside of the layout: they see
nothing. A layout may cover more positions than a sequence has, so of a list only the entries between two bounds take part.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..gluon_names import aggregate
from .tile_scheduler import count_below

GROUP_BITS = gl.constexpr(7)  # a group has 128 positions
TABLE_COLUMNS = gl.constexpr(5)
FAR_PLACE = gl.constexpr(2147483647)


@aggregate
class Sequence:
    """A row of the table: where its tokens are in the tensors, how many, and the position of its first query."""

    i_batch: gl.tensor | gl.constexpr
    q_start: gl.tensor | gl.constexpr
    q_len: gl.tensor | gl.constexpr
    kv_start: gl.tensor | gl.constexpr
    kv_len: gl.tensor | gl.constexpr
    q_position: gl.tensor | gl.constexpr


@aggregate
class Sequences:
    """The `n` sequences of a call. Without a table all are alike, as the numbers say.

    starts: of all sequences one after the other, the first group of queries of each and the end; then likewise of keys.
    """

    table: gl.tensor | gl.constexpr
    starts: gl.tensor | gl.constexpr
    n: gl.tensor | gl.constexpr
    q_len: gl.tensor | gl.constexpr
    kv_len: gl.tensor | gl.constexpr
    q_position: gl.tensor | gl.constexpr
    PACKED: gl.constexpr


@aggregate
class Layout:
    """The grid of a layout; list_heads: lists of each sequence, 0 where all sequences share the lists."""

    n_rows: gl.tensor | gl.constexpr
    n_cols: gl.tensor | gl.constexpr
    first_row: gl.tensor | gl.constexpr
    list_heads: gl.tensor | gl.constexpr
    BLOCK_SIZE: gl.constexpr


@aggregate
class SequenceTile:
    """A work tile: group `group` of rows or columns, which is number `rank` of the sequence's."""

    i_sequence: gl.tensor
    head: gl.tensor
    group: gl.tensor
    rank: gl.tensor


@aggregate
class Entries:
    """Entries of a list, sorted: from lo to hi, behind `before` others."""

    lo: gl.tensor
    hi: gl.tensor
    before: gl.tensor


@aggregate
class MergedEntries:
    """What two lists have together: the entry of the group's place 0, the first place of their blocks, and how many places.

    Among these may be places of blocks that are not between the bounds.
    """

    at: gl.tensor
    first_place: gl.tensor
    n_places: gl.tensor


@gluon.jit
def sequence_of(sequences, i):
    """Sequence i."""
    i_batch = i
    if sequences.PACKED:
        i_batch = i * 0
    if sequences.table is None:
        return Sequence(i_batch, 0, sequences.q_len, 0, sequences.kv_len, sequences.q_position)
    else:
        row = sequences.table + i * TABLE_COLUMNS
        return Sequence(
            i_batch, gl.load(row), gl.load(row + 1), gl.load(row + 2), gl.load(row + 3), gl.load(row + 4)
        )


@gluon.jit
def groups_of(sequence, layout, COLUMNS: gl.constexpr):
    """The first group of the queries, or of the keys, and how many there are, also where positions overflow."""
    if COLUMNS:
        return 0, (sequence.kv_len + 127) >> GROUP_BITS
    else:
        position = sequence.q_position - layout.first_row * layout.BLOCK_SIZE  # in the layout
        n = ((position & 127) + sequence.q_len + 127) >> GROUP_BITS
        return position >> GROUP_BITS, gl.where(sequence.q_len > 0, n, 0)


@gluon.jit
def starts_of(sequences, COLUMNS: gl.constexpr):
    """Where the first groups of the queries, or of the keys, are."""
    if COLUMNS:
        return sequences.starts + (sequences.n + 1)
    else:
        return sequences.starts


@gluon.jit
def total_groups(sequences, layout, COLUMNS: gl.constexpr):
    """Groups of all sequences."""
    if sequences.table is None:
        _, n = groups_of(sequence_of(sequences, 0), layout, COLUMNS)
        return n * sequences.n
    else:
        return gl.load(starts_of(sequences, COLUMNS) + sequences.n)


@gluon.jit
def groups_before(sequences, layout, i, COLUMNS: gl.constexpr):
    """Groups of the sequences before sequence i."""
    if sequences.table is None:
        _, n = groups_of(sequence_of(sequences, 0), layout, COLUMNS)
        return n * i
    else:
        return gl.load(starts_of(sequences, COLUMNS) + i)


@gluon.jit
def tile_of_sequence(tile, sequences, layout, heads_beside, COLUMNS: gl.constexpr, LAST_FIRST: gl.constexpr):
    """Work tile number `tile`: heads_beside heads, which share k and v, come side by side; LAST_FIRST: groups descend."""
    total = total_groups(sequences, layout, COLUMNS)
    among = tile // heads_beside
    head = among // total * heads_beside + tile % heads_beside
    place = among % total
    if sequences.table is None:
        _, n = groups_of(sequence_of(sequences, 0), layout, COLUMNS)
        i_sequence = place // n
    else:
        i_sequence, _ = count_below(starts_of(sequences, COLUMNS) + 1, 0, sequences.n, place + 1, place + 1)
    rank = place - groups_before(sequences, layout, i_sequence, COLUMNS)
    first, n = groups_of(sequence_of(sequences, i_sequence), layout, COLUMNS)
    if LAST_FIRST:
        rank = n - 1 - rank
    return SequenceTile(i_sequence, head, first + rank, rank)


@gluon.jit
def first_list_of(layout, i_sequence, layout_head, COLUMNS: gl.constexpr):
    """The first list of a layout head for a sequence."""
    lists = layout.n_rows
    if COLUMNS:
        lists = layout.n_cols
    return (i_sequence * layout.list_heads + layout_head) * lists


@gluon.jit
def entries_between(lists, layout, first_list, i, begin, end, COLUMNS: gl.constexpr):
    """The entries of list i of a layout head, an int that may be outside of the layout, from index `begin` to `end`."""
    n_lists = layout.n_rows
    if COLUMNS:
        n_lists = layout.n_cols
    is_inside = (i >= 0) & (i < n_lists)
    lo = gl.load(lists.offsets + first_list + i, mask=is_inside, other=0)
    hi = gl.load(lists.offsets + first_list + i + 1, mask=is_inside, other=0)
    before, below = count_below(lists.indices, lo, hi, begin, gl.maximum(begin, end))
    return Entries(lo + before, lo + below, before)


@gluon.jit
def merged_entries(lists, first, second):
    """The same of the merged list of two rows (columns) of blocks of 64; both were taken between the same bounds."""
    # the lists of a group are merged where the first of them is
    at = first.lo - first.before
    has_first, has_second = first.lo < first.hi, second.lo < second.hi
    first_place = gl.minimum(
        gl.load(lists.places + first.lo, mask=has_first, other=FAR_PLACE),
        gl.load(lists.places + second.lo, mask=has_second, other=FAR_PLACE),
    )
    last_place = gl.maximum(
        gl.load(lists.places + first.hi - 1, mask=has_first, other=-1),
        gl.load(lists.places + second.hi - 1, mask=has_second, other=-1),
    )
    has_any = has_first | has_second
    return MergedEntries(
        at, gl.where(has_any, first_place, 0), gl.where(has_any, last_place + 1 - first_place, 0)
    )
