"""HIER002: the configuration, and the dictionary of configurations."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "HIER002",
    "`HierarchicalConfig(...)` and `get_hierarchical_presets()` become `SparsePatternConfig`",
    """\
from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig

config = HierarchicalConfig()
model = BlockSparseHierarchical([2048], [1], hierarchical_config=config)
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

config = SparsePatternConfig(
    pattern_type="dilated_sparse",
    sparsity_ratio=0.01,
    dilation_rates=[1, 2, 4, 8],
)
model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=config,
)
""",
    why="""\
The pattern of a module is now a `SparsePatternConfig`, which takes a ratio and rates instead of levels.
""",
    safe="""\
The variable keeps its name, and `hierarchical_config=config` becomes `sparse_config=config`. A comment next to a level
moves above the statement.
""",
    changes=(
        """\
All levels are dropped: every configuration gets `--sparsity-ratio` and `--dilation-rates`. For each literal
configuration the report states the density that it really had and the one that it has now; two of the four presets
kept all blocks.
""",
        """\
`get_hierarchical_presets()` becomes a dictionary with the old names, all with the same value.
""",
    ),
)
