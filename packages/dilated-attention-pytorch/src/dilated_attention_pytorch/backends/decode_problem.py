"""DecodeProblem: the contract of decoding, a few queries at the end of every cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..grid import BlockGrid
from ..layout.lists import BlockLists, BlockMasks

MAX_QUERIES = 16  # the smallest block_size: consecutive queries are in at most two rows of a layout


class DecodeInputs(NamedTuple):
    """The tensors of a decoding call; all are on the device of q."""

    q: Tensor
    """(batch, q_len, num_heads, head_dim), any strides; q_len is 1 to `MAX_QUERIES`."""
    k_cache: Tensor
    """(batch, max_len, num_kv_heads, head_dim), any strides; with a block_table (num_pages, page_size, num_kv_heads,
    head_dim)."""
    v_cache: Tensor
    """As k_cache, with v_head_dim."""
    cache_lengths: Tensor
    """int32 (batch,): the end of the valid keys. The last query belongs to the last of them."""
    block_table: Tensor | None
    """int32 (batch, max_pages): token t of an element is token ``t % page_size`` of page ``block_table[b, t // page_size]``."""
    kv_starts: Tensor | None
    """int32 (batch,): the token at position 0. Without it token 0."""
    alibi_slopes: Tensor | None
    """(num_heads,), floating."""
    sinks: Tensor | None
    """(num_heads,), floating."""


class DecodeProblem(NamedTuple):
    """One decoding call: AttentionProblem with ``is_causal`` and the sequences that `cache_lengths` and `kv_starts` say.

    With ``end = cache_lengths.clamp(0, max_len)`` and ``start = kv_starts.clamp(min=0).minimum(end)`` query i is at position
    ``cache_lengths - start - q_len + i``, and the key at position j, for ``0 <= j < end - start``, is token ``start + j`` of
    the cache. What is beyond may hold NaN. A query whose position is negative or not in the layout sees nothing.
    """

    inputs: DecodeInputs
    rows: BlockLists
    """The row lists, one for every (layout batch, layout head, row)."""
    block_masks: BlockMasks | None
    grid: BlockGrid
    layout_batch: int
    """1 or batch."""
    layout_heads: int
    """1, num_kv_heads or num_heads."""
    softmax_scale: float
    softcap: float
    """0 is none."""

    @property
    def batch(self) -> int:
        return self.inputs.q.shape[0]

    @property
    def q_len(self) -> int:
        return self.inputs.q.shape[1]

    @property
    def num_heads(self) -> int:
        return self.inputs.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.inputs.q.shape[3]

    @property
    def num_kv_heads(self) -> int:
        return self.inputs.k_cache.shape[2]

    @property
    def v_head_dim(self) -> int:
        return self.inputs.v_cache.shape[3]

    @property
    def block_size(self) -> int:
        return self.grid.block_size

    @property
    def max_len(self) -> int:
        """Tokens that the cache of an element can hold."""
        return max_len_of(self.inputs)


def max_len_of(inputs: DecodeInputs) -> int:
    """Tokens that the cache of an element can hold."""
    size, table = inputs.k_cache.shape[1], inputs.block_table
    return size if table is None else size * table.shape[1]


# A call that was resolved: out, and lse if the second argument asks for it.
Decode = Callable[[DecodeInputs, bool], tuple[Tensor, Tensor | None]]
