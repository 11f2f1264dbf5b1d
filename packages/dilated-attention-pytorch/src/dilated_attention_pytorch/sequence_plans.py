"""What the table of the sequences of a call depends on, its tensors apart from its numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .grid import BlockGrid
from .sequences import default_offset


class Given(NamedTuple):
    """The integer tensors of the positions of a call: of any integer type and stride, on one device; None: not given."""

    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    q_offset: Tensor | None = None
    kv_lengths: Tensor | None = None
    kv_starts: Tensor | None = None


class TablePlan(NamedTuple):
    """What a table depends on besides the tensors.

    Attributes:
        n_sequences: the rows of the table.
        q_tokens: no sequence has queries behind so many tokens in memory.
        kv_tokens: likewise for keys.
        max_q_len: no sequence has more queries.
        max_kv_len: no sequence has more keys.
        first: a position, see `position`.
        q_end: with `is_cut` queries from this position on do not count.
        kv_end: likewise for keys.
        first_position: of the layout's first row.
        position: of the first query: "given" (q_offset), "fixed" (`first`), "keys" (`first` before the first key in
            memory), or "last" (the last query sits at the last key).
        is_cut: see `within_grid`.
        is_packed: of `Sequences`.
        only_lengths: of `Sequences`.
    """

    n_sequences: int
    q_tokens: int
    kv_tokens: int
    max_q_len: int
    max_kv_len: int
    first: int
    q_end: int
    kv_end: int
    first_position: int
    position: str
    is_cut: bool
    is_packed: bool
    only_lengths: bool


def plan_of_batch(
    q: Tensor,
    kv_len: int,
    is_causal: bool,
    q_offset: int | Tensor | None,
    has_starts: bool,
    grid: BlockGrid,
) -> TablePlan:
    """The plan of the table of a batch, as `sequences_of_batch` and `within_grid` make it."""
    batch, q_len = q.shape[0], q.shape[1]
    default = default_offset(q_len, kv_len, is_causal)
    first = default if q_offset is None or isinstance(q_offset, Tensor) else q_offset
    position = "fixed"
    if isinstance(q_offset, Tensor):
        position = "given"
    elif q_offset is None and has_starts and (is_causal or q_len == kv_len):
        position = "keys"
    only_lengths = not has_starts and position != "given"
    return TablePlan(
        batch, q_len, kv_len, q_len, kv_len, first, grid.q_offset + grid.q_len, grid.kv_len, position_of(grid), position,
        not only_lengths and is_ragged(grid), False, only_lengths,
    )  # fmt: skip


def plan_of_packed(
    n_sequences: int,
    tokens: tuple[int, int],
    longest: tuple[int, int],
    is_causal: bool,
    q_offset: int | Tensor | None,
    grid: BlockGrid,
) -> TablePlan:
    """The plan of the table of packed sequences, as `packed_sequences` and `within_grid` make it.

    Args:
        n_sequences: how many there are.
        tokens: of q and of k.
        longest: max_seqlen_q and max_seqlen_k.
        is_causal: as of the call.
        q_offset: as of the call.
        grid: of the layout.
    """
    if isinstance(q_offset, Tensor):
        position = "given"
    elif q_offset is None and is_causal:
        position = "last"
    else:
        position = "fixed"
    first = q_offset if isinstance(q_offset, int) else 0
    return TablePlan(
        n_sequences, *tokens, *longest, first, grid.q_offset + grid.q_len, grid.kv_len, position_of(grid), position,
        is_ragged(grid), True, False,
    )  # fmt: skip


def position_of(grid: BlockGrid) -> int:
    """The first position of the first row."""
    return grid.first_row * grid.block_size


def is_ragged(grid: BlockGrid) -> bool:
    """Whether the last block of the rows or of the columns is not whole."""
    return (grid.q_offset + grid.q_len) % grid.block_size != 0 or grid.kv_len % grid.block_size != 0
