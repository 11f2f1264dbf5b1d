"""What is computed from a list of blocks at its first use, and kept as long as the list."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..._torch_internals import without_modes
from ...caching import LOCK, BoundedCache

Made = TypeVar("Made")
MAX_PER_LIST = 8
KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # a BoundedCache by the indices of a list
MISSING = object()


def kept(indices: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
    """What is kept for the list and the key, made first if it is not there."""
    of_list: BoundedCache | None = KEPT.get(indices)
    if of_list is not None:
        found = of_list.get(key, MISSING)  # None is a value
        if found is not MISSING:
            return found  # type: ignore[no-any-return]
    with without_modes(), torch.no_grad():
        made = make()
    with LOCK:
        of_list = KEPT.setdefault(indices, BoundedCache(MAX_PER_LIST))
    return of_list.keep(key, made)
