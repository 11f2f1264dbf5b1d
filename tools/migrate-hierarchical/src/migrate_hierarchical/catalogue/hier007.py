"""HIER007: a pattern of the hierarchical type."""

from __future__ import annotations

from .rule import KEPT_RATIOS, OTHER_BLOCKS, Rule

RULE = Rule(
    "HIER007",
    '`SparsePatternConfig(pattern_type="hierarchical", ...)` becomes the dilated_sparse pattern',
    """\
from dilated_attention_pytorch import SparsePatternConfig

config = SparsePatternConfig(pattern_type="hierarchical", sparsity_ratio=0.25, block_size=128)
""",
    """\
from dilated_attention_pytorch import SparsePatternConfig

config = SparsePatternConfig(
    pattern_type="dilated_sparse",
    block_size=128,
    sparsity_ratio=0.01,
    dilation_rates=[1, 2, 4, 8],
)
""",
    why="""\
`pattern_type="hierarchical"` is refused.
""",
    safe="""\
A `block_size` that is a power of two from 16 to 256 is kept; any other becomes the nearest one, with a note.
`window_size`, `global_tokens` and `dilation_rates` had no effect and are removed, with a note.
""",
    changes=(OTHER_BLOCKS, KEPT_RATIOS),
)
