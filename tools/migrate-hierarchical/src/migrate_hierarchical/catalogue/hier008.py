"""HIER008: removed classes used as types."""

from __future__ import annotations

from .rule import Rule

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
    why="""\
The classes no longer exist, so an annotation that is evaluated, an `isinstance` or a re-export of them fails.
""",
    safe="""\
Only names used as types are renamed: in annotations, including strings, in `isinstance`, `cast` and `type[...]`, and in
`__all__` and re-exports. A class of your own or of another package with the same name is left unchanged.
""",
    changes=(),
)
