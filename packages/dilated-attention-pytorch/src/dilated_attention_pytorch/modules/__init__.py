"""The attention modules."""

from .base import BlockSparseAttention
from .convert import convert_to_block_sparse
from .multihead import BlockSparseMultiheadAttention

__all__ = ["BlockSparseAttention", "BlockSparseMultiheadAttention", "convert_to_block_sparse"]
