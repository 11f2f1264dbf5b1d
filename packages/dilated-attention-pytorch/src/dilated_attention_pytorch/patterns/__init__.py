"""Patterns: config and lengths -> BlockLayout. Index arithmetic only."""

from .layout import BlockLayout, BlockLists, LayoutStats

__all__ = ["BlockLayout", "BlockLists", "LayoutStats"]
