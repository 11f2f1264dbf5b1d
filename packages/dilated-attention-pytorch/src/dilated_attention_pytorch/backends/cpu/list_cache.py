"""Cache of values that depend on block lists; entries are dropped together with their lists."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..._torch_internals import without_modes
from ...caching import LOCK, BoundedCache

Value = TypeVar("Value")
MAX_PER_LIST = 8
CACHE: WeakIdKeyDictionary = WeakIdKeyDictionary()  # indices of a list -> BoundedCache
MISSING = object()


def cached(indices: Tensor, key: Hashable, make: Callable[[], Value]) -> Value:
    """The value for the list with these `indices` and the key, made if it is missing."""
    values: BoundedCache | None = CACHE.get(indices)
    if values is not None:
        found = values.get(key, MISSING)  # None is a value
        if found is not MISSING:
            return found  # type: ignore[no-any-return]
    with without_modes(), torch.no_grad():
        value = make()
    with LOCK:
        values = CACHE.setdefault(indices, BoundedCache(MAX_PER_LIST))
    return values.keep(key, value)
