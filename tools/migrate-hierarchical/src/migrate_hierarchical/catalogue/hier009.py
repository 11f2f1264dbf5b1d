"""HIER009: the imports."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "HIER009",
    "imports of removed names and modules are renamed, moved to the package root, or removed",
    """\
from dilated_attention_pytorch.block_sparse_hierarchical import BlockSparseHierarchical as Attention

model = Attention([1024], [1])
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[1024],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
""",
    why="""\
The removed names cannot be imported, and the modules that held them are gone.
""",
    safe="""\
New names are added in the style that the file uses: from the package, as members of a module, relative, in `try` or
under `TYPE_CHECKING`. An import that is no longer used is removed, together with its own comment only.
""",
    changes=(),
)
