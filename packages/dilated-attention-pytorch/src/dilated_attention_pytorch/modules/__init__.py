"""The attention modules."""

from .adaptive import BlockSparseAdaptive
from .base import BlockSparseAttention
from .convert import convert_to_block_sparse
from .multihead import BlockSparseMultiheadAttention

__all__ = [
    "BlockSparseAdaptive",
    "BlockSparseAttention",
    "BlockSparseMultiheadAttention",
    "convert_to_block_sparse",
]
