"""BlockLayout and its lists: built from patterns, indices, block masks and BlockMasks; their coverage; plots."""

from .layout import BlockLayout, LayoutStats
from .lists import BlockLists
from .selection import block_scores, select_blocks

__all__ = ["BlockLayout", "BlockLists", "LayoutStats", "block_scores", "select_blocks"]
