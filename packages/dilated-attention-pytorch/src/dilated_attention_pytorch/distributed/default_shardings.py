"""Which tokens ranks are taken to hold where nobody says: modules that choose for themselves must choose alike.

A sharding depends on the pattern and on causality. Two layers of a model with different ones, each called without a sharding,
may ask for as many tokens of every rank, and yet for others: the result would be wrong without a sign.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

from ..caching import BoundedCache
from .sharding import SequenceSharding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Of each group, by the length of a sequence: the last module that chose, and what it chose.
CHOSEN: weakref.WeakKeyDictionary[ProcessGroup, BoundedCache] = weakref.WeakKeyDictionary()


def check_one_choice(group: ProcessGroup, module: nn.Module, sharding: SequenceSharding) -> None:
    """Raise ValueError if a living module has chosen other tokens for sequences of this length."""
    chosen = CHOSEN.get(group)
    if chosen is None:
        chosen = CHOSEN.setdefault(group, BoundedCache(256))
    found: tuple[weakref.ref[nn.Module], SequenceSharding] | None = chosen.get(sharding.seq_len)
    if found is not None:
        other, its = found
        if other() is not None and its.chunks != sharding.chunks:
            raise ValueError(
                f"sharding is missing: this layer would take the ranks to hold other tokens of a sequence of {sharding.seq_len} "
                "than one called before, as its pattern or is_causal differs. Layers that see the same tokens must share a "
                "sharding: make one of all their layouts with SequenceSharding.from_layout, and pass it to each call "
                "(sharding=...). Layers that do not: pass each its own, layer.sharding(seq_len, is_causal)"
            )
        if other() is module and its is sharding:
            return
    chosen.keep(sharding.seq_len, (weakref.ref(module), sharding))
