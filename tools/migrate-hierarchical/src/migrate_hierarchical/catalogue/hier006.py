"""HIER006: a hierarchical preset by name."""

from __future__ import annotations

from .rule import KEPT_RATIOS, OTHER_BLOCKS, SAME_PRESETS, Rule

RULE = Rule(
    "HIER006",
    '`get_block_sparse_preset("hierarchical_*")` becomes `create_block_sparse_attention(...)`',
    """\
from dilated_attention_pytorch import get_block_sparse_preset

model = get_block_sparse_preset("hierarchical_long")
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
)
""",
    why="""\
The presets `hierarchical_standard`, `hierarchical_fine` and `hierarchical_long` are gone.
""",
    safe="""\
Keywords that override the preset are passed on. A preset that still exists keeps its name; a `hierarchical_config`
next to it had no effect and is removed.
""",
    changes=(OTHER_BLOCKS, SAME_PRESETS, KEPT_RATIOS),
)
