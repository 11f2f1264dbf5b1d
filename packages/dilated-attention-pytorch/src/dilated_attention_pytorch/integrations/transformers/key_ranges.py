"""KeyRanges: which keys of every sequence count, as the tensor that transformers carries from the mask to the layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kind(NamedTuple):
    """What is known of a mask without reading a tensor."""

    causal: bool = False
    """No query sees a later key."""
    windowed: bool = False
    """A sliding window is on top; its width is an argument of the layer."""
    is_prefix: bool = False
    """The queries are those of the first keys, and the keys behind them are not written yet: an empty static cache."""
    packed: bool = False
    """Sequences stand one behind the other."""
    unread: bool = False
    """Compiled, so nobody has read whether the position_ids are those of packed sequences."""


class KeyRanges(NamedTuple):
    """Where the keys of every sequence begin and end.

    transformers hands a mask of four dimensions on to every layer as it is, so the numbers travel as one: the tensor is
    int32, which no mask is, and its second dimension says the kind. That leaves the last two, which models cut to the lengths
    of q and k, without meaning, but for packed sequences, which have no cache and are not cut.
    """

    kind: Kind
    tensor: Tensor
    """int32 (batch, 2 + the bits of kind, 1, 1): start and end of the keys of each element, in memory. Causal, the last
    query sits at the last key before the end. Packed: int32 (1, ..., longest, sequences + 1), where each begins."""

    @classmethod
    def of_batch(cls, kind: Kind, start: Tensor, end: Tensor) -> KeyRanges:
        """The ranges of a batch.

        Args:
            kind: of the mask.
            start: int (batch,), the first key of each element.
            end: int (batch,), where its keys end.
        """
        start, end = start.int()[:, None], end.int()[:, None]
        columns = torch.cat([start, end.expand(-1, 1 + bits_of(kind))], 1)
        return cls(kind, columns[:, :, None, None])

    @classmethod
    def of_packed(cls, kind: Kind, cu_seqlens: Tensor, longest: int) -> KeyRanges:
        """The ranges of sequences one behind the other.

        Args:
            kind: of the mask.
            cu_seqlens: int (sequences + 1,), where each begins, of the tokens of all batch elements.
            longest: tokens of the longest.
        """
        return cls(kind, cu_seqlens.int().expand(1, 2 + bits_of(kind), longest, -1))

    @classmethod
    def read(cls, mask: Tensor | None) -> KeyRanges | None:
        """The ranges that a layer is given as its mask; None for none, and for a mask that is not ours."""
        if mask is None or mask.dtype != torch.int32 or mask.dim() != 4:
            return None
        bits = int(mask.shape[1]) - 2
        return cls(Kind(*(bool(bits >> i & 1) for i in range(len(Kind._fields)))), mask)

    @property
    def start(self) -> Tensor:
        """int32 (batch,)."""
        return self.tensor[:, 0, 0, 0]

    @property
    def end(self) -> Tensor:
        """int32 (batch,)."""
        return self.tensor[:, 1, 0, 0]

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (sequences + 1,), of packed ones."""
        return self.tensor[0, 0, 0]

    @property
    def longest(self) -> int:
        """Tokens of the longest packed sequence."""
        return self.tensor.shape[2]


def bits_of(kind: Kind) -> int:
    """The kind as a number."""
    return sum(1 << i for i, flag in enumerate(kind) if flag)
