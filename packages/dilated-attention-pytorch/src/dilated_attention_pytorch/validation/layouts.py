"""Whether a layout fits a call: its heads, its batch, and the positions that it covers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..layout.layout import BlockLayout
from ..sequences import Sequences


class Positions(NamedTuple):
    """What is known of a call's positions without reading a tensor; None is unknown."""

    first: int | None
    """Of the first query."""
    q_end: int | None
    """No query is at it or behind it."""
    kv_end: int | None
    """No key is at it or behind it."""
    q_offset: int | None = None
    """What the user gave."""


def check_layout(q: Tensor, k: Tensor, layout: BlockLayout, is_causal: bool, n_sequences: int) -> None:
    if not isinstance(layout, BlockLayout):
        name = type(layout).__name__
        make = "from_block_mask" if name == "BlockMask" else "from_config"
        raise TypeError(f"layout must be a BlockLayout, got {name}; make one with BlockLayout.{make}")
    if layout.causal and not is_causal:
        raise ValueError(
            "is_causal=False needs a layout made with causal=False, got causal=True: queries would see later keys "
            "of their own block; pass is_causal=True, or make the layout with causal=False"
        )
    check_layout_heads(q, k, layout.num_heads)
    if layout.batch != 1 and layout.batch != n_sequences:
        raise ValueError(
            f"layout must have batch 1 or {n_sequences}, one for every batch element or packed sequence, got "
            f"{layout.batch}"
        )


def check_layout_heads(q: Tensor, k: Tensor, num_heads: int) -> None:
    if num_heads not in (1, k.shape[2], q.shape[2]):
        raise ValueError(
            f"layout must have 1 head, num_kv_heads {k.shape[2]} or num_heads {q.shape[2]}, got {num_heads}; "
            "give one pattern for all heads, or one per head or kv head (the list sparse_config, the mask's first axis)"
        )


def check_positions(layout: BlockLayout, its: Positions, is_causal: bool) -> None:
    """Raise if positions that are known without reading a tensor leave the layout."""
    grid = layout.grid
    begin, end = grid.q_offset, grid.q_offset + grid.q_len
    if its.q_end is not None and its.q_end > end:
        fits = False
    elif its.first is not None and its.first < begin and not (is_causal and begin <= 0):
        fits = False  # causal, queries before position 0 see nothing whatever the layout
    else:
        # causal, no query sees a key behind the last one of the layout
        fits = its.kv_end is None or its.kv_end <= grid.kv_len or (is_causal and end <= grid.kv_len)
    if fits:
        return
    offset = "" if its.q_offset is None else f" (q_offset {its.q_offset})"
    has = [] if its.q_end is None else [f"queries at {shown(its.first, its.q_end)}{offset}"]
    has += [] if its.kv_end is None else [f"keys at {shown(0, its.kv_end)}"]
    fix = "; make it for these lengths or longer ones"
    if is_causal and not layout.causal:
        fix += ", with causal=True if the last query is to sit at the last key"
    raise ValueError(
        f"layout covers queries at positions {shown(begin, end)} and keys at {shown(0, grid.kv_len)}, but the call has "
        + " and ".join(has)
        + fix
    )


def shown(first: int | None, end: int) -> str:
    return f"up to {end - 1}" if first is None else f"{first} to {end - 1}"


def check_read_positions(
    layout: BlockLayout, sequences: Sequences, q_offset: int | None, is_causal: bool
) -> None:
    """`check_positions` of a table that can be read at once, for every sequence with queries and keys."""
    for _, q_len, kv_start, kv_len, first in sequences.table.tolist():
        if q_len > 0 and kv_len > 0:
            # queries beside padding on the left are padding, too
            begin = 0 if first == -kv_start and not sequences.is_packed else first
            check_positions(layout, Positions(begin, first + q_len, kv_len, q_offset), is_causal)
