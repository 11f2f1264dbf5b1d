"""HIER004: the function that took embed_dim and num_heads and did not use them."""

from __future__ import annotations

from .rule import ONE_SEGMENT, OTHER_BLOCKS, Rule

RULE = Rule(
    "HIER004",
    "`create_hierarchical_attention(...)` becomes `create_block_sparse_attention(...)`",
    """\
from dilated_attention_pytorch import create_hierarchical_attention

model = create_hierarchical_attention(512, 8, segment_lengths=[1024, 2048], dilation_rates=[1, 2])
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
The function is gone together with the class that it created.
""",
    safe="""\
`embed_dim` and `num_heads` had no effect and are removed, with a note in the report. The module takes q, k and v as
before; it has no projections.
""",
    changes=(OTHER_BLOCKS, ONE_SEGMENT),
)
