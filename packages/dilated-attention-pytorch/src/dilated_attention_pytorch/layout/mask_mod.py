"""MaskMod: calls a mask_mod, in the signature of FlexAttention, for the pairs of tokens of blocks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .. import _torch_internals
from ..values import shown

Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class MaskMod:
    """A mask_mod for many pairs at a time.

    It is written for one pair: four tensors without dimensions, as FlexAttention calls it through `torch.vmap`. That comes
    first. One that `torch.vmap` cannot take (``if head == 0:``, a list indexed by the head) is called with a number of one
    batch element and of one head, and with queries and keys that broadcast, (n, q, 1) and (n, 1, kv).
    """

    def __init__(self, function: Any) -> None:
        if not callable(function):
            raise TypeError(
                f"mask_mod must be a function of batch, head, query and key that returns a bool tensor, got {shown(function)}"
                + ("; for a tensor use BlockLayout.from_mask" if isinstance(function, Tensor) else "")
            )
        self.function: Function = function
        each_key = torch.vmap(function, (None, None, None, 0))
        each_query = torch.vmap(each_key, (None, None, 0, None))
        self._each_block = torch.vmap(each_query, (0, 0, 0, 0))
        self._context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        self._why_not_vmap: Exception | None = None

    def __call__(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Bool (n, q, kv) of n blocks.

        Args:
            batch: int64 (n,), ascending.
            head: int64 (n,), ascending within a batch element.
            query: int64 (n, q), the queries of each block.
            key: int64 (n, kv), the keys of each block.

        Raises:
            ValueError: the mask_mod raised, in both ways of calling it.
            TypeError: it returned no bool tensor.
        """
        if self._why_not_vmap is None:
            try:
                kept = self._map(batch, head, query, key)
            except Exception as error:
                self._why_not_vmap = error
            else:
                return self.checked(kept)
        return self._broadcast(batch, head, query, key)

    def _map(self, *indices: Tensor) -> Any:
        try:
            with self._context():
                return self._each_block(*indices)
        except RuntimeError:
            if self._context is _torch_internals.tensors_as_indices:
                raise
            self._context = _torch_internals.tensors_as_indices
        return self._map(*indices)

    def _broadcast(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        parts = []
        changes = (batch.diff() != 0) | (head.diff() != 0)
        bounds = [0, *(changes.nonzero().flatten() + 1).tolist(), batch.numel()]
        for first, end in itertools.pairwise(bounds):
            q, kv = query[first:end, :, None], key[first:end, None]
            shape = (end - first, query.shape[1], key.shape[1])
            try:
                kept = self.function(batch[first], head[first], q, kv)
            except Exception as error:
                raise ValueError(self._why_not(error)) from error
            kept = self.checked(kept)
            if kept.dim() != 3:
                raise TypeError(
                    f"mask_mod must return a bool for every pair, for queries (n, q, 1) and keys (n, 1, kv) a tensor that "
                    f"broadcasts to {shape}, got {tuple(kept.shape)}; torch.vmap cannot take it: "
                    f"{first_line(self._why_not_vmap)}"
                )
            parts.append(kept.expand(shape))
        return torch.cat(parts)

    def _why_not(self, error: Exception) -> str:
        message = f"mask_mod raised {first_line(error)}"
        if first_line(error) == first_line(self._why_not_vmap):
            return message
        return f"{message}, with queries and keys that broadcast; and through torch.vmap {first_line(self._why_not_vmap)}"

    def checked(self, kept: Any) -> Tensor:
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            raise TypeError(
                f"mask_mod must return a bool tensor, got {kept.dtype if isinstance(kept, Tensor) else shown(kept)}; "
                "compare, and combine with &, | and ~"
            )
        return kept


def first_line(error: Exception | None) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
