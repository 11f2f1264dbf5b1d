"""HIER008: removed classes where a type is meant."""

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
Only names that mean a type are renamed: in annotations, also those in strings, in `isinstance`, `cast`, `type[...]`,
`__all__` and re-exports. A class of your own or of another package with such a name is left alone.
""",
    changes=(),
)
