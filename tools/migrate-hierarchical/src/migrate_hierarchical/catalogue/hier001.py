"""HIER001: the class, called."""

from __future__ import annotations

from .rule import ONE_SEGMENT, OTHER_BLOCKS, Rule

RULE = Rule(
    "HIER001",
    "`BlockSparseHierarchical(...)` becomes `create_block_sparse_attention(...)`",
    """\
from dilated_attention_pytorch import BlockSparseHierarchical

model = BlockSparseHierarchical([2048, 4096], [1, 2], dropout=0.1)
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
    dropout=0.1,
)
""",
    why="""\
The class is gone; the factory creates the module that replaces it.
""",
    safe="""\
`q`, `k`, `v` and the output keep their shapes, and `is_causal` its meaning. `device`, `dtype` and `dropout` are passed
on, and so is the `block_size` of a `sparse_config`, the only one of its fields that had an effect.
""",
    changes=(OTHER_BLOCKS, ONE_SEGMENT),
)
