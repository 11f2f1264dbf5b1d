"""Sequences: the table of the sequences of a call, of which every kernel reads one row per sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .grid import BlockGrid

COLUMNS = ("q_start", "q_len", "kv_start", "kv_len", "q_position")


class Sequences(NamedTuple):
    """Where the queries and the keys of every sequence are in memory, and at which positions.

    Query i of a sequence, for ``0 <= i < q_len``, is token ``q_start + i`` of q and sits at position ``q_position + i``; key
    j, for ``0 <= j < kv_len``, is token ``kv_start + j`` of k and v and sits at position j. Sequence s is in batch element
    s, or, if packed, all of them are in the only batch element, one behind the other. A token of no sequence sees nothing
    and is seen by none. The numbers are within the tensors, also where a user's were not.
    """

    table: Tensor
    """int32 (n_sequences, 5) on the device of q, contiguous: the columns `COLUMNS`."""
    max_q_len: int
    """No sequence has more queries."""
    max_kv_len: int
    """No sequence has more keys."""
    is_packed: bool = False
    only_lengths: bool = False
    """Whether sequences differ in kv_len alone: q_start and kv_start are 0, q_position is the q_offset of the problem."""
    groups: Tensor | None = None
    """int32 (2, n_sequences + 1): how many groups of 128 positions hold a query of an earlier sequence, and a key; the
    groups count from the first position of the layout's first row, and from position 0. None: nobody made it."""

    def column(self, name: str) -> Tensor:
        """One column, int32 (n_sequences,)."""
        return self.table[:, COLUMNS.index(name)]


def default_offset(q_len: int, kv_len: int, is_causal: bool) -> int:
    """The position of query 0 where nothing else is said: causal, the last query is at the position of the last key."""
    return kv_len - q_len if is_causal else 0


def sequences_of_batch(
    q: Tensor,
    kv_len: int,
    is_causal: bool,
    q_offset: int | Tensor | None = None,
    kv_lengths: Tensor | None = None,
    kv_starts: Tensor | None = None,
) -> tuple[int, Sequences | None]:
    """The position of query 0 and the table of a batch, which is None where all elements are alike.

    Args:
        q: (batch, q_len, num_heads, head_dim).
        kv_len: tokens of k and v.
        is_causal: as of the call.
        q_offset: the position of query 0, an int or int32 (batch,).
        kv_lengths: int32 (batch,), the end of the valid keys in memory.
        kv_starts: int32 (batch,), where position 0 is in memory. Without a `q_offset` queries move with the keys: causal,
            or where there are as many; else (cross attention) they stay.
    """
    batch, q_len = q.shape[0], q.shape[1]
    default = default_offset(q_len, kv_len, is_causal)
    fixed = default if q_offset is None or isinstance(q_offset, Tensor) else q_offset
    if not isinstance(q_offset, Tensor) and kv_lengths is None and kv_starts is None:
        return fixed, None
    of_all = torch.zeros(batch, dtype=torch.int32, device=q.device)
    end = of_all + kv_len if kv_lengths is None else kv_lengths.clamp(0, kv_len)
    start = of_all if kv_starts is None else torch.minimum(kv_starts.clamp(min=0), end)
    if isinstance(q_offset, Tensor):
        position = of_all + q_offset
    elif q_offset is None and kv_starts is not None and (is_causal or q_len == kv_len):
        position = default - start
    else:
        position = of_all + fixed
    table = torch.stack([of_all, of_all + q_len, start, end - start, position], 1)
    only_lengths = kv_starts is None and not isinstance(q_offset, Tensor)
    return fixed, Sequences(table.to(torch.int32), q_len, kv_len, only_lengths=only_lengths)


def packed_sequences(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    is_causal: bool,
    q_offset: int | Tensor | None = None,
) -> Sequences:
    """The table of sequences one behind the other.

    Args:
        cu_seqlens_q: int32 (n_sequences + 1,), where the queries of each begin, and the end of the last.
        cu_seqlens_k: likewise for the keys.
        max_seqlen_q: no sequence has more queries; what is beyond does not count.
        max_seqlen_k: likewise for the keys.
        is_causal: as of the call.
        q_offset: the position of the first query of each sequence, an int or int32 (n_sequences,).
    """
    q_len = cu_seqlens_q.diff().clamp(0, max_seqlen_q)
    if cu_seqlens_k is cu_seqlens_q and max_seqlen_k == max_seqlen_q:
        kv_len = q_len
    else:
        kv_len = cu_seqlens_k.diff().clamp(0, max_seqlen_k)
    if q_offset is None:
        position = kv_len - q_len if is_causal else torch.zeros_like(q_len)
    else:
        position = torch.zeros_like(q_len) + q_offset
    table = torch.stack([cu_seqlens_q[:-1], q_len, cu_seqlens_k[:-1], kv_len, position], 1)
    return Sequences(table.to(torch.int32), max_seqlen_q, max_seqlen_k, is_packed=True)


def within_grid(sequences: Sequences, grid: BlockGrid) -> Sequences:
    """The table without what is behind the last position of a layout, in a last block that is not whole.

    Blocks behind it are in no list. Within it a block may be listed, but what its mask says there means nothing.
    """
    q_end, kv_end = grid.q_offset + grid.q_len, grid.kv_len
    if sequences.only_lengths or (q_end % grid.block_size == 0 and kv_end % grid.block_size == 0):
        return sequences
    q_start, q_len, kv_start, kv_len, position = sequences.table.unbind(1)
    q_len = torch.minimum(q_len, (q_end - position).clamp(min=0))
    table = torch.stack([q_start, q_len, kv_start, kv_len.clamp(max=kv_end), position], 1)
    return sequences._replace(table=table.to(torch.int32), groups=None)
