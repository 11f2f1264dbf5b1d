"""KeyRanges: which keys of every sequence count, as the tensor that transformers carries from the mask to the layers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ...backends.decode_problem import Decode


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


KINDS = [
    Kind(*[bool(bits >> i & 1) for i in range(len(Kind._fields))]) for bits in range(1 << len(Kind._fields))
]
"""Every kind, at the place of its bits."""

NOTE = "_dilated_attention_key_ranges"


class Note(NamedTuple):
    """What is known of a mask once the first layer has read it."""

    kind: Kind
    start: Tensor
    end: Tensor
    steps: dict[Hashable, Decode]
    """The steps of decoding that were resolved with this mask, see steps.py."""


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

    start: Tensor
    """int32 (batch,), its first column."""
    end: Tensor
    """int32 (batch,), its second column."""

    @classmethod
    def of_batch(cls, kind: Kind, start: Tensor, end: Tensor) -> KeyRanges:
        """The ranges of a batch.

        Args:
            kind: of the mask.
            start: int32 (batch,), the first key of each element.
            end: int32 (batch,), where its keys end.
        """
        columns = torch.stack([start, end, *[end] * bits_of(kind)])
        return cls(kind, columns.t()[:, :, None, None], start, end).noted()

    @classmethod
    def of_packed(cls, kind: Kind, cu_seqlens: Tensor, longest: int) -> KeyRanges:
        """The ranges of sequences one behind the other.

        Args:
            kind: of the mask.
            cu_seqlens: int (sequences + 1,), where each begins, of the tokens of all batch elements.
            longest: tokens of the longest.
        """
        return cls.of_tensor(cu_seqlens.int().expand(1, 2 + bits_of(kind), longest, -1))

    @classmethod
    def of_tensor(cls, mask: Tensor) -> KeyRanges:
        """The ranges of the tensor that stands for them."""
        kind = KINDS[mask.shape[1] - 2]  # an index is no symbol, also where torch.compile made the length one
        return cls(kind, mask, mask[:, 0, 0, 0], mask[:, 1, 0, 0])

    @classmethod
    def read(cls, mask: Tensor | None) -> KeyRanges | None:
        """The ranges that a layer is given as its mask; None for none, and for a mask that is not ours."""
        if mask is None or mask.dtype != torch.int32 or mask.dim() != 4:
            return None
        if not 2 <= mask.shape[1] < 2 + len(KINDS):
            return None
        if (mask.shape[2] != 1 or mask.shape[3] != 1) and mask.stride(1) != 0:  # neither a batch nor packed
            return None
        if torch.compiler.is_compiling():
            return cls.of_tensor(mask)
        noted = getattr(mask, NOTE, None)
        return cls.of_tensor(mask).noted() if noted is None else cls(noted.kind, mask, noted.start, noted.end)

    def noted(self) -> KeyRanges:
        """These ranges, which the other layers find with the tensor instead of reading it again."""
        if not torch.compiler.is_compiling():
            setattr(self.tensor, NOTE, Note(self.kind, self.start, self.end, {}))
        return self

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
