"""The attention modules."""

from .base import BlockSparseAttention

__all__ = ["BlockSparseAttention"]
