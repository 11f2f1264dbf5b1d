"""HIER008: removed classes where a type is meant."""

from __future__ import annotations

from .base import Rule

RULE = Rule(
    "HIER008",
    "removed classes in annotations, `isinstance`, `cast`, `__all__` and re-exports are renamed",
    """\
from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig


def size(model: BlockSparseHierarchical, config: "HierarchicalConfig") -> bool:
    return isinstance(model, BlockSparseHierarchical)
""",
    """\
from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig


def size(model: BlockSparseAttention, config: "SparsePatternConfig") -> bool:
    return isinstance(model, BlockSparseAttention)
""",
)
