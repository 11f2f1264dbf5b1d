"""What is computed from a list of blocks at its first use, and kept as long as the list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...caching import without_modes

Made = TypeVar("Made")
MOST = 8  # per list
KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by the indices of the list
LOCK = threading.Lock()


def kept(indices: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
    """What is kept for the list and the key, made first if it is not there; the oldest goes where there are too many."""
    of_list: dict[Hashable, Made] | None = KEPT.get(indices)
    if of_list is not None and key in of_list:
        try:
            return of_list[key]
        except KeyError:  # another thread has just dropped it
            pass
    with without_modes(), torch.no_grad():
        made = make()
    with LOCK:
        of_list = KEPT.setdefault(indices, {})
        while len(of_list) >= MOST:
            del of_list[next(iter(of_list))]
        of_list[key] = made
    return made
