"""HIER008: removed classes where a type is meant."""

from __future__ import annotations

import libcst as cst

from ..analysis.uses import Use
from ..context import Context
from ..names import TYPES
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
    why="""\
The classes no longer exist, so an annotation that is evaluated, an `isinstance` or a re-export of them fails.
""",
    safe="""\
Only names that mean a type are renamed: in annotations, also those in strings, in `isinstance`, `cast`, `type[...]`,
`__all__` and re-exports. A class of your own or of another package with such a name is left alone.
""",
    changes=(),
)


def repeats(context: Context, use: Use) -> cst.Tuple | None:
    """The tuple of classes around a removed one that holds its successor too."""
    container = context.walk.parents[context.walk.parents[use.node]]
    if not isinstance(container, cst.Tuple):
        return None
    others = [context.resolver.by_node.get(each.value) for each in container.elements]
    names = [TYPES.get(other.name, other.name) for other in others if other is not None]
    return container if names.count(TYPES[use.name]) > 1 else None


def without_repeats(classes: cst.Tuple) -> cst.BaseExpression:
    """A tuple of classes with each of them once; the class itself where one is left."""
    kept: dict[str, cst.BaseElement] = {}
    for element in classes.elements:
        kept.setdefault(cst.Module([]).code_for_node(element.value), element)
    elements = list(kept.values())
    if len(elements) == 1:
        return elements[0].value
    elements[-1] = elements[-1].with_changes(comma=classes.elements[-1].comma)
    return classes.with_changes(elements=elements)
