"""BlockLayout and its lists: built from patterns, indices, block masks and BlockMasks; their coverage; plots; tiles of videos."""

from .layout import BlockLayout
from .lists import BlockLists
from .selection import block_scores, select_blocks
from .stats import LayoutStats
from .tile_order import TileOrder

__all__ = ["BlockLayout", "BlockLists", "LayoutStats", "TileOrder", "block_scores", "select_blocks"]
