"""HIER005: the factory, asked for the hierarchical variant or given a hierarchical_config."""

from __future__ import annotations

from .rule import KEPT_RATIOS, ONE_SEGMENT, OTHER_BLOCKS, Rule

RULE = Rule(
    "HIER005",
    '`create_block_sparse_attention("hierarchical", ...)` asks for the base variant',
    """\
from dilated_attention_pytorch import create_block_sparse_attention

model = create_block_sparse_attention("hierarchical", segment_lengths=[2048, 4096], block_size=128)
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        block_size=128,
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
""",
    why="""\
The factory no longer has a hierarchical variant, and refuses `hierarchical_config`.
""",
    safe="""\
A call that asked for another variant ignored `hierarchical_config`: only that argument is removed, with a note. The
same holds for `"auto"` with `embed_dim` and `num_heads`, which meant the multi-head variant.
""",
    changes=(OTHER_BLOCKS, ONE_SEGMENT, KEPT_RATIOS),
)
