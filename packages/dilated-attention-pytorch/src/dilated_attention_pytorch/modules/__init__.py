"""The attention modules."""

from .base import BlockSparseAttention
from .multihead import BlockSparseMultiheadAttention

__all__ = ["BlockSparseAttention", "BlockSparseMultiheadAttention"]
