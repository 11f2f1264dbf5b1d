"""Where the tiles of a program are, in calls that are no plain batch: each sequence has positions of its own.

A batch without a table has one sequence in each element. Tokens of an element that are in no sequence are padding on the left
or on the right, and have positions, too: tiles go through all of them, so that every result is written once. Packed sequences
share element 0, and a program has tokens of one sequence only.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def in_elements(batch, token, head, UNIT: tl.constexpr):
    """The strides of a tensor in elements, from those in pieces of UNIT elements; that of head_dim is 1."""
    return batch.to(tl.int64) * UNIT, token * UNIT, head.to(tl.int64) * UNIT


@triton.jit
def block_of(position, BLOCK_SIZE: tl.constexpr):
    """The block of a position, which may be negative."""
    return position // BLOCK_SIZE - (position % BLOCK_SIZE < 0).to(tl.int32)


@triton.jit
def sequence_of(Table, q_position, q_tokens, kv_tokens, i_sequence, PACKED: tl.constexpr):
    """Of a sequence, its batch element; the position of the first query in memory; its queries (the first, the one behind
    the last), the first of its keys in memory, and how many there are."""
    if Table is None:
        none = i_sequence * 0  # not 0: the interpreter would make a Python number of it
        return i_sequence, q_position, none, q_tokens, none, kv_tokens
    else:
        row = Table + i_sequence * 5
        q_begin, q_len, first_key = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        return (
            i_sequence * 0 if PACKED else i_sequence,
            tl.load(row + 4) - q_begin,
            q_begin,
            q_begin + q_len,
            first_key,
            tl.load(row + 3),
        )


@triton.jit
def first_list_of(list_heads, i_sequence, group, index, first, count, N_CLASSES: tl.constexpr):
    """The first list of a block row or column, of the `count` that the layout has from block `first` on, and whether it is
    one of them. `group` is the layout head."""
    place = index - first
    first_list = ((i_sequence * list_heads + group) * count + place) * N_CLASSES
    return first_list, (place >= 0) & (place < count)
