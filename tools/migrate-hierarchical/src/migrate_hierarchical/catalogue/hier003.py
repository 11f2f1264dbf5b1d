"""HIER003: the function that created a module from the name of a configuration."""

from __future__ import annotations

from .rule import ONE_SEGMENT, OTHER_BLOCKS, SAME_PRESETS, Rule

RULE = Rule(
    "HIER003",
    "`create_hierarchical_block_sparse(...)` becomes `create_block_sparse_attention(...)`",
    """\
from dilated_attention_pytorch import create_hierarchical_block_sparse

model = create_hierarchical_block_sparse("long_range", segment_lengths=[4096, 8192])
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[4096],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
""",
    why="""\
The function is gone together with the class that it created.
""",
    safe="""\
The arguments that had an effect are passed on, as in [HIER001](HIER001.md).
""",
    changes=(OTHER_BLOCKS, SAME_PRESETS, ONE_SEGMENT),
)
