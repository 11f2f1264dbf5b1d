"""BlockLayout and its lists: made from patterns, indices, masks and BlockMasks; how far they see; drawn."""

from .layout import BlockLayout, BlockLists, LayoutStats

__all__ = ["BlockLayout", "BlockLists", "LayoutStats"]
