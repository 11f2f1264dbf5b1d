"""BlockLayout and its lists: built from patterns, block masks and BlockMasks; their coverage; plots."""

from .layout import BlockLayout, LayoutStats
from .lists import BlockLists

__all__ = ["BlockLayout", "BlockLists", "LayoutStats"]
