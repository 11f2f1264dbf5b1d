"""The removed module: importing it says what replaces it."""

from .removed import raise_removed_name

raise_removed_name("block_sparse_hierarchical")
